"""Heads: from features to noise and to energy."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from crystalml.crystal import CrystalBatch, Tangent
from crystalml.elements import MAX_Z
from crystalml.geometry.torus import remove_mean
from crystalml.models.encoder import Features
from crystalml.models.layers import MLP


class NoiseHead(nn.Module):
    """Lattice noise phi_L(h_mean) @ L_t, O(3)-equivariant, and normalised score phi_F(h_i) (DAO §4.2)."""

    def __init__(self, dim: int, centered: bool) -> None:
        super().__init__()
        self.centered = centered
        self.lattice = nn.Linear(dim, 9, bias=False)
        self.frac = nn.Linear(dim, 3, bias=False)
        nn.init.zeros_(self.lattice.weight)  # multiplied by L, 5 Angstrom an entry, a random start is far off

    def forward(self, features: Features, x: CrystalBatch) -> Tangent:
        with torch.autocast(x.device.type, enabled=False):
            lattice = self.lattice(features.graph.to(x.dtype)).unflatten(-1, (3, 3)) @ x.lattice
            frac = self.frac(features.node.to(x.dtype))
            if self.centered:
                frac = remove_mean(frac, x.index, x.num_atoms)
        return Tangent(lattice=lattice, frac=frac)


@dataclass(frozen=True)
class EnergyScale:
    """y = (E - mean) / std links the network's energy y to E in eV/atom; beta is that of exp(-beta y)."""

    mean: float = 0.0
    std: float = 1.0
    beta: float = 1.0

    def to_network(self, energy: Tensor) -> Tensor:
        return (energy - self.mean) / self.std

    def to_physical(self, y: Tensor) -> Tensor:
        return y * self.std + self.mean

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


class EnergyHead(nn.Module):
    """phi_E(h_mean): a two-layer network (DAO, Appendix 3.3), (b,) in network units; starts at E = 0."""

    def __init__(self, dim: int, scale: EnergyScale) -> None:
        super().__init__()
        self.net = MLP(dim, dim, 1)
        nn.init.zeros_(self.net[-1].weight)  # type: ignore[arg-type]
        nn.init.constant_(self.net[-1].bias, -scale.mean / scale.std)  # type: ignore[arg-type]

    def forward(self, features: Features, x: CrystalBatch) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(x.device.type, enabled=False):
            return self.net(features.graph.to(x.dtype)).squeeze(-1), None


class AtomicEnergyHead(nn.Module):
    """y_i = MLP(h_i) + shift[Z_i] + V_i / std, the crystal's y their mean: N E is a sum over its atoms.

    V_i is the encoder's repulsion. shift: (119,) one learned number an element, network units; a run starts
    it from a fit (`training.references.fit_shift`). Starts at E = 0 but for the repulsion.
    """

    def __init__(self, dim: int, scale: EnergyScale) -> None:
        super().__init__()
        self.std = scale.std
        self.net = MLP(dim, dim, 1)
        nn.init.zeros_(self.net[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.net[-1].bias)  # type: ignore[arg-type]
        self.shift = nn.Parameter(torch.full((MAX_Z + 1,), -scale.mean / scale.std))

    def forward(self, features: Features, x: CrystalBatch) -> tuple[Tensor, Tensor | None]:
        """(b,) mean and (n,) single energies, network units."""
        with torch.autocast(x.device.type, enabled=False):
            repulsion = features.repulsion if features.repulsion is not None else x.frac.new_zeros(())
            y, _ = self.atomic(features.node.to(x.dtype), x.numbers, repulsion)
            return y.new_zeros(len(x)).index_add(0, x.index, y) / x.num_atoms, y

    def atomic(self, node: Tensor, numbers: Tensor, repulsion: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) energies of the atoms from their features (n, d) and the repulsion they feel, in eV.

        Also (n, d), what the last linear layer reads.
        """
        last: Tensor = self.net[1](self.net[0](node))
        y: Tensor = self.net[2](last).squeeze(-1) + self.shift[numbers] + repulsion / self.std
        return y, last
