"""Energies, forces and stresses of a potential through the vectors between its pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from crystalml.crystal import CrystalBatch
from crystalml.errors import UnsupportedError
from crystalml.geometry.neighbors import Neighbors, Topology, neighbor_topology
from crystalml.models.half import in_bfloat16
from crystalml.models.model import CrystalModel
from crystalml.models.pairs import Pairs, tabulate


@dataclass(frozen=True)
class Derivatives:
    """energies: (n,) the atoms' parts in eV. per_atom: (b,) eV/atom. forces: (n, 3) eV/A. stress: (b, 3, 3)
    eV/A^3. last: (n, d), what the energy head's last linear layer reads, None after compiled ones."""

    energies: Tensor
    per_atom: Tensor
    forces: Tensor
    stress: Tensor
    last: Tensor | None = None


def derivatives(
    model: CrystalModel,
    x: CrystalBatch,
    create_graph: bool = False,
    compiled: CompiledPotential | None = None,
) -> Derivatives:
    """With g_ij = dE/dr_ij: F_i = sum_j g_ij - sum_k g_ki and stress = sym(sum_ij r_ij g_ij) / V.

    Half the work of differentiating by positions and cells, and the part with the weights in it is a plain
    function of tensors, which can be compiled.
    """
    scale = model.config.energy
    if scale is None or not model.is_potential:
        raise UnsupportedError("only a potential (recipe dao-p) has an energy of every atom")
    pairs = neighbor_pairs(model, x)
    last = None
    table = (x.numbers, pairs.j, pairs.vector)
    if compiled is not None:
        y, g = compiled.slopes(*table)
    elif not create_graph and model.compiled is not None and model.compiled.takes(pairs.vector):
        y, g, last = model.compiled(*table)
    else:
        y, g, last = pair_slopes(model, *table, create_graph)
    g = g * scale.std
    forces = g.sum(1).index_add(0, pairs.j.flatten(), g.flatten(0, 1), alpha=-1)
    virial = g.new_zeros(len(x), 3, 3).index_add(0, x.index, pairs.vector.mT @ g)
    energies = scale.to_physical(y)
    per_atom = crystal_mean(energies, x)
    stress = (virial + virial.mT) / (2 * x.volume[:, None, None])
    return Derivatives(energies, per_atom, forces, stress, last)


def energies(model: CrystalModel, x: CrystalBatch, compiled: CompiledPotential | None) -> Tensor:
    """(b,) eV/atom, with gradients to the weights where they are enabled."""
    if compiled is None:
        return model.energy(x)
    scale, pairs = model.config.energy, neighbor_pairs(model, x)
    assert scale is not None  # a potential has an energy head
    return crystal_mean(scale.to_physical(compiled.energies(x.numbers, pairs.j, pairs.vector)), x)


def atomic_energies(model: CrystalModel, x: CrystalBatch) -> tuple[Tensor, Tensor]:
    """(n,) a potential's energies of the atoms in eV, and (n, d), what the last linear layer reads."""
    scale = model.config.energy
    assert scale is not None  # a potential has an energy head
    y, last = model.atomic_energies(x.numbers, neighbor_pairs(model, x))
    return scale.to_physical(y), last


def crystal_mean(values: Tensor, x: CrystalBatch) -> Tensor:
    """(n, ...) values of the atoms -> (b, ...) their means over each crystal."""
    sums = values.new_zeros(len(x), *values.shape[1:]).index_add(0, x.index, values)
    return sums / x.num_atoms.view(-1, *[1] * (values.dim() - 1))


def neighbor_pairs(model: CrystalModel, x: CrystalBatch, edges: Neighbors | None = None) -> Pairs:
    """The table of neighbours that a potential reads."""
    cutoff = model.encoder.config.cutoff  # type: ignore[union-attr]
    with torch.no_grad():
        found: Neighbors | Topology = neighbor_topology(x, cutoff) if edges is None else edges
        return tabulate(x, found, 2 * cutoff)


def pair_slopes(
    model: CrystalModel, numbers: Tensor, j: Tensor, vector: Tensor, create_graph: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y_i (n,), d(sum y) / d vectors (n, K, 3), last features (n, d). create_graph: to train the slopes."""
    # A caller's no_grad or inference_mode must not break forces: copies are made outside of both.
    with torch.inference_mode(False), torch.enable_grad():
        vector = vector.detach().clone().requires_grad_()
        y, last = model.atomic_energies(numbers.clone(), Pairs.of(j.clone(), vector))
        (g,) = torch.autograd.grad(y.sum(), vector, create_graph=create_graph)
    return (y, g, last) if create_graph else (y.detach(), g, last.detach())


class _Atomic(nn.Module):
    """`CrystalModel.atomic_energies` as a forward pass, which functional_call asks for."""

    def __init__(self, model: CrystalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, numbers: Tensor, j: Tensor, vector: Tensor) -> Tensor:
        return self.model.atomic_energies(numbers, Pairs.of(j, vector))[0]


class CompiledPotential:
    """A potential's energies and their slopes with gradients to the weights, three times as fast on a CPU.

    torch.compile does not differentiate twice. So the first derivative is traced into a graph of plain
    operations, with all sizes symbolic, and that graph is compiled: its gradient is one derivative only.
    The first call of each compiles, for one to three minutes. half: matrix products of the slopes in
    bfloat16, see `in_bfloat16`.
    """

    def __init__(self, model: CrystalModel, half: bool = False) -> None:
        self.core = _Atomic(model)
        self.half = half
        self.energies = torch.compile(self.core, dynamic=True)
        self._slopes: Callable[..., tuple[Tensor, Tensor]] | None = None

    def slopes(self, numbers: Tensor, j: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        """numbers (n,), neighbours j (n, K), vectors (n, K, 3) -> y_i (n,), d(sum y) / dr_ij (n, K, 3)."""
        weights, buffers = list(self.core.parameters()), dict(self.core.named_buffers())
        inputs = (weights, buffers, numbers, j, vector)
        if self._slopes is None:
            trace = make_fx(self._differentiated(), tracing_mode="symbolic", _allow_non_fake_inputs=True)
            graph = trace(*inputs)
            self._slopes = torch.compile(in_bfloat16(graph) if self.half else graph, dynamic=True)
        return self._slopes(*inputs)

    def _differentiated(self) -> Callable[..., tuple[Tensor, Tensor]]:
        names = [name for name, _ in self.core.named_parameters()]

        def slopes(
            weights: list[Tensor], buffers: dict[str, Tensor], numbers: Tensor, j: Tensor, vector: Tensor
        ) -> tuple[Tensor, Tensor]:
            vector = vector.detach().requires_grad_()
            state = (dict(zip(names, weights, strict=True)), buffers)
            y: Tensor = functional_call(self.core, state, (numbers, j, vector))
            (g,) = torch.autograd.grad(y.sum(), vector, create_graph=True)
            return y, g

        return slopes
