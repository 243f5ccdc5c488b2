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
from crystalml.geometry.neighbors import Neighbors, neighbor_list
from crystalml.models.model import CrystalModel
from crystalml.models.pairs import Pairs, tabulate

Slopes = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""numbers (n,), neighbours j (n, K), vectors (n, K, 3) -> y_i (n,), d(sum_i y_i) / d vectors (n, K, 3)."""


@dataclass(frozen=True)
class Derivatives:
    """energies: (n,) the atoms' parts in eV. per_atom: (b,) eV/atom. forces: (n, 3) eV/A. stress: (b, 3, 3)
    eV/A^3."""

    energies: Tensor
    per_atom: Tensor
    forces: Tensor
    stress: Tensor


def derivatives(
    model: CrystalModel, x: CrystalBatch, create_graph: bool = False, slopes: Slopes | None = None
) -> Derivatives:
    """With g_ij = dE/dr_ij: F_i = sum_j g_ij - sum_k g_ki and stress = sym(sum_ij r_ij g_ij) / V.

    Half the work of differentiating by positions and cells, and the part with the weights in it, `slopes`,
    is a plain function of tensors, which can be compiled (`compile_slopes`).
    """
    scale = model.config.energy
    if scale is None or not model.is_potential:
        raise UnsupportedError("only a potential (recipe dao-p) has an energy of every atom")
    pairs = neighbor_pairs(model, x)
    if slopes is None:
        y, g = pair_slopes(model, x.numbers, pairs.j, pairs.vector, create_graph)
    else:
        y, g = slopes(x.numbers, pairs.j, pairs.vector)
    g = g * scale.std
    forces = g.sum(1).index_add(0, pairs.j.flatten(), g.flatten(0, 1), alpha=-1)
    virial = g.new_zeros(len(x), 3, 3).index_add(0, x.index, pairs.vector.mT @ g)
    energies = scale.to_physical(y)
    per_atom = energies.new_zeros(len(x)).index_add(0, x.index, energies) / x.num_atoms
    return Derivatives(energies, per_atom, forces, (virial + virial.mT) / (2 * x.volume[:, None, None]))


def neighbor_pairs(model: CrystalModel, x: CrystalBatch, edges: Neighbors | None = None) -> Pairs:
    """The table of neighbours that a potential reads."""
    cutoff = model.encoder.config.cutoff  # type: ignore[union-attr]
    with torch.no_grad():
        return tabulate(x, neighbor_list(x, cutoff) if edges is None else edges, 2 * cutoff)


def pair_slopes(
    model: CrystalModel, numbers: Tensor, j: Tensor, vector: Tensor, create_graph: bool
) -> tuple[Tensor, Tensor]:
    """`Slopes` by autograd. create_graph: so that errors of the slopes can train the weights."""
    # A caller's no_grad or inference_mode must not break forces: copies are made outside of both.
    with torch.inference_mode(False), torch.enable_grad():
        vector = vector.detach().clone().requires_grad_()
        y = model.atomic_energies(numbers.clone(), Pairs.of(j.clone(), vector))
        (g,) = torch.autograd.grad(y.sum(), vector, create_graph=create_graph)
    return (y, g) if create_graph else (y.detach(), g)


class _Atomic(nn.Module):
    """`CrystalModel.atomic_energies` as a forward pass, which functional_call asks for."""

    def __init__(self, model: CrystalModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, numbers: Tensor, j: Tensor, vector: Tensor) -> Tensor:
        return self.model.atomic_energies(numbers, Pairs.of(j, vector))


def compile_slopes(model: CrystalModel) -> Slopes:
    """`Slopes` with gradients to the weights, compiled; three times as fast as autograd's on a CPU.

    torch.compile does not differentiate twice. So the first derivative is traced into a graph of plain
    operations, with all sizes symbolic, and that graph is compiled: its gradient is one derivative only.
    The first call compiles, for one to three minutes.
    """
    core = _Atomic(model)
    names = [name for name, _ in core.named_parameters()]
    compiled: list[Callable[..., tuple[Tensor, Tensor]]] = []

    def slopes(
        weights: list[Tensor], buffers: dict[str, Tensor], numbers: Tensor, j: Tensor, vector: Tensor
    ) -> tuple[Tensor, Tensor]:
        vector = vector.detach().requires_grad_()
        state = (dict(zip(names, weights, strict=True)), buffers)
        y: Tensor = functional_call(core, state, (numbers, j, vector))
        (g,) = torch.autograd.grad(y.sum(), vector, create_graph=True)
        return y, g

    def call(numbers: Tensor, j: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        weights, buffers = list(core.parameters()), dict(core.named_buffers())
        inputs = (weights, buffers, numbers, j, vector)
        if not compiled:
            graph = make_fx(slopes, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*inputs)
            compiled.append(torch.compile(graph, dynamic=True))
        return compiled[0](*inputs)

    return call
