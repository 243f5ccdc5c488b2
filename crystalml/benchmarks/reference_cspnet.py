"""CSPNet written the straightforward way, edge by edge: the slow, clear reference of the dense one.

Every ordered pair of atoms of a crystal, self included, is an edge; its features are concatenated and go
through one network (DiffCSP, Eqs. 6-8), on PyTorch Geometric's `MessagePassing`. The order of work is that
of DiffCSP's published code: edges from a block matrix, Fourier features anew in every layer. It loads the
weights of the dense `crystalml.models.cspnet` and must give the same numbers; the benchmark times both.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import dense_to_sparse, scatter

from crystalml.crystal import CrystalBatch, Tangent
from crystalml.errors import ArchitectureError
from crystalml.models.cspnet import CSPNet, CSPNetConfig, Message
from crystalml.models.encoder import METRIC_DIM, NodeEmbedding, metric_features
from crystalml.models.heads import EnergyScale, NoiseHead
from crystalml.models.layers import MLP
from crystalml.models.model import CrystalModel, ModelConfig


def fully_connected(num_atoms: Tensor) -> Tensor:
    """(2, sum N^2) edges (j, i): all ordered pairs within each crystal, self included."""
    blocks = [torch.ones(count, count, device=num_atoms.device) for count in num_atoms.tolist()]
    return dense_to_sparse(torch.block_diag(*blocks))[0]


def fourier(delta: Tensor, frequencies: int) -> Tensor:
    """[sin 2 pi k d, cos 2 pi k d] for k = 1..K: (e, 3) -> (e, 6 K)."""
    k = torch.arange(1, frequencies + 1, device=delta.device, dtype=delta.dtype)
    angle = 2 * math.pi * (delta[:, :, None] * k).flatten(1)
    return torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)


class ReferenceMessage(MessagePassing):
    """h_i += MLP[h_i | mean_j MLP[h_i | h_j | G | psi(F_j - F_i)]], on LayerNorm-ed h."""

    def __init__(self, dim: int, metric_dim: int, frequencies: int) -> None:
        super().__init__(aggr="mean")
        self.frequencies = frequencies
        edge_dim = metric_dim + 6 * frequencies
        self.norm = nn.LayerNorm(dim)
        self.edge_mlp = nn.Sequential(
            nn.Linear(2 * dim + edge_dim, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU()
        )
        self.node_mlp = nn.Sequential(nn.Linear(2 * dim, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())

    def forward(self, h: Tensor, edge_index: Tensor, metric: Tensor, delta: Tensor) -> Tensor:
        x = self.norm(h)
        mean = self.propagate(edge_index, x=x, metric=metric, delta=delta)
        return h + self.node_mlp(torch.cat([x, mean], dim=1))

    def message(self, x_i: Tensor, x_j: Tensor, metric: Tensor, delta: Tensor) -> Tensor:
        return self.edge_mlp(torch.cat([x_i, x_j, metric, fourier(delta, self.frequencies)], dim=1))


class ReferenceCSPNet(nn.Module):
    """CSPNet with noise heads and, if asked for, an energy head: `denoise` and `energy` of a CrystalModel."""

    has_noise = True
    is_potential = False

    def __init__(
        self, config: CSPNetConfig, centered: bool = False, energy: EnergyScale | None = None
    ) -> None:
        super().__init__()
        self.config = ModelConfig(config, centered=centered, energy=energy)
        self.metric, self.centered, self.scale = config.metric, centered, energy
        self.card: dict[str, Any] = {}
        self.embed = NodeEmbedding(config.dim, config.time_dim)
        self.layers = nn.ModuleList(
            ReferenceMessage(config.dim, METRIC_DIM[config.metric], config.frequencies)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.lattice_head = nn.Linear(config.dim, 9, bias=False)
        self.frac_head = nn.Linear(config.dim, 3, bias=False)
        self.energy_head = MLP(config.dim, config.dim, 1) if energy is not None else None

    @property
    def has_energy(self) -> bool:
        return self.energy_head is not None

    def features(self, x: CrystalBatch, t: Tensor) -> tuple[Tensor, Tensor]:
        """Node features (n, dim) and their mean over each crystal (b, dim)."""
        h = self.embed(x, t)
        edge_index = fully_connected(x.num_atoms)
        j, i = edge_index
        delta = (x.frac[j] - x.frac[i]) % 1.0
        metric = metric_features(x.lattice, self.metric)[x.index][i]
        for layer in self.layers:
            h = layer(h, edge_index, metric, delta)
        h = self.norm(h)
        return h, scatter(h, x.index, dim_size=len(x), reduce="mean")

    def denoise(self, x: CrystalBatch, t: Tensor) -> Tangent:
        """Lattice noise phi_L(h_mean) @ L_t and normalised score phi_F(h_i)."""
        node, graph = self.features(x, t)
        lattice = self.lattice_head(graph).view(-1, 3, 3) @ x.lattice
        frac = self.frac_head(node)
        if self.centered:
            frac = frac - scatter(frac, x.index, dim_size=len(x), reduce="mean")[x.index]
        return Tangent(lattice=lattice.to(x.dtype), frac=frac.to(x.dtype))

    def energy(self, x: CrystalBatch, t: Tensor | None = None) -> Tensor:
        """(b,) eV/atom; t = None reads x as a clean crystal."""
        assert self.energy_head is not None
        assert self.scale is not None
        time = x.num_atoms.new_zeros(len(x)) if t is None else t
        return self.scale.to_physical(self.energy_head(self.features(x, time)[1])[:, 0])


def from_dense(model: CrystalModel) -> ReferenceCSPNet:
    """The reference with the weights of a dense CSPNet model that has noise heads."""
    encoder = model.encoder
    if not isinstance(encoder, CSPNet) or not isinstance(model.noise_head, NoiseHead):
        raise ArchitectureError(
            f"the reference mirrors a CSPNet with noise heads, not {type(encoder).__name__}; "
            "use a model of the recipe diffcsp"
        )
    weight = next(model.parameters())
    out = ReferenceCSPNet(encoder.config, model.config.centered, model.config.energy)
    out = out.to(weight.device, weight.dtype).train(model.training)
    out.embed = copy.deepcopy(encoder.embed)
    out.norm = copy.deepcopy(encoder.norm)
    for mine, dense in zip(out.layers, encoder.layers, strict=True):
        assert isinstance(mine, ReferenceMessage)
        assert isinstance(dense, Message)
        mine.load_state_dict(_layer_weights(dense))
    out.lattice_head.load_state_dict(model.noise_head.lattice.state_dict())
    out.frac_head.load_state_dict(model.noise_head.frac.state_dict())
    if out.energy_head is not None and model.energy_head is not None:
        out.energy_head.load_state_dict(model.energy_head.net.state_dict())
    out.card = model.card
    return out


def _layer_weights(dense: Message) -> dict[str, Tensor]:
    """The dense layer splits the first edge matrix by its inputs; put side by side they are the whole."""
    first = torch.cat([dense.receiver.weight, dense.sender.weight, dense.pair.weight], dim=1)
    pieces = {"edge_mlp.2": dense.edge_out, "node_mlp.0": dense.node_in, "node_mlp.2": dense.node_out}
    weights = {"edge_mlp.0.weight": first, "edge_mlp.0.bias": dense.receiver.bias}
    weights |= {f"norm.{name}": value for name, value in dense.norm.state_dict().items()}
    for prefix, layer in pieces.items():
        weights |= {f"{prefix}.weight": layer.weight, f"{prefix}.bias": layer.bias}
    return {name: value.detach() for name, value in weights.items()}
