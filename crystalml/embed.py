"""Features of crystals and atoms from any encoder, in batches that fit the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.geometry.neighbors import Topology, neighbor_topology, select_topology
from crystalml.geometry.torus import wrap
from crystalml.models.fourierframenet import FourierFrameNetConfig
from crystalml.models.model import CrystalModel, EncoderConfig
from crystalml.models.periodic import PeriodicConfig
from crystalml.predict import pack, pair_budget

_NEIGHBOR_PAIRS = 2**14  # of encoders whose pairs are short rows: larger groups leave the cache
_SEARCHED = 512  # crystals whose neighbours are found, and sorted, together


@dataclass(frozen=True)
class Embedding:
    """graph: (b, d) one row a crystal. node: (n, d) one row an atom."""

    graph: Tensor
    node: Tensor


def knows_cell(encoder: EncoderConfig) -> bool:
    """Whether what the encoder says depends on the choice of the cell."""
    if isinstance(encoder, FourierFrameNetConfig):
        return encoder.inter > 0 or encoder.frame == "paper"
    return not isinstance(encoder, PeriodicConfig)


def knows_hands(encoder: EncoderConfig) -> bool:
    """Whether a crystal and its mirror image differ to the encoder."""
    if isinstance(encoder, FourierFrameNetConfig):
        return encoder.chiral
    return not isinstance(encoder, PeriodicConfig)


def mirror(x: CrystalBatch) -> CrystalBatch:
    """The mirror images, in right-handed cells again: F -> -F."""
    return x.replace(frac=wrap(-x.frac))


def embed(
    model: CrystalModel,
    x: CrystalBatch,
    max_pairs: int | None = None,
    report: Callable[[int], None] | None = None,
) -> Embedding:
    """The encoder's features of clean crystals, on its device; the mean of both hands where it knows hands.

    report: called with the number of crystals after each group.
    """
    weight = next(model.parameters())
    x = x.to(weight.device, weight.dtype)
    groups, graphs, nodes = [], [], []
    for group, part, edges in _parts(model.config.encoder, x, max_pairs):
        graph, node = _features(model, part, edges)
        groups.append(group)
        graphs.append(graph)
        nodes.append(node)
        if report is not None:
            report(len(part))
    order = torch.cat(groups)
    back = torch.argsort(order)
    counts = x.num_atoms[order]
    sites = CrystalBatch(
        counts.new_zeros(len(x.numbers)), x.frac, x.lattice, counts, site_labels={"node": torch.cat(nodes)}
    )
    return Embedding(torch.cat(graphs)[back], sites[back].site_labels["node"])


def _parts(
    encoder: EncoderConfig, x: CrystalBatch, max_pairs: int | None
) -> Iterator[tuple[Tensor, CrystalBatch, Topology | None]]:
    """Groups of crystals that go together, and their neighbours where the encoder looks for some."""
    if not isinstance(encoder, PeriodicConfig | FourierFrameNetConfig):
        for group in pack(x.num_atoms, max_pairs or pair_budget(x.device, gradient=False)):
            yield group.to(x.device), x[group], None
        return
    free = isinstance(encoder, FourierFrameNetConfig) and encoder.frame == "paper"  # it wants no images
    budget = max_pairs or (_NEIGHBOR_PAIRS if x.device.type == "cpu" else 2**20)
    for some in torch.arange(len(x), device=x.device).split(_SEARCHED):
        part = x[some]
        edges = neighbor_topology(part, encoder.cutoff)
        for group in _alike(encoder, part, edges, budget):
            yield some[group], part[group], None if free else select_topology(edges, part, group)


def _alike(
    encoder: PeriodicConfig | FourierFrameNetConfig, x: CrystalBatch, edges: Topology, budget: int
) -> list[Tensor]:
    """Crystals whose tables of pairs, atoms x neighbours (and x atoms of a cell), fit with little filling."""
    amount = torch.bincount(edges.i, minlength=len(x.numbers))
    width = amount.new_zeros(len(x)).scatter_reduce(0, x.index, amount, "amax")
    cells = encoder.inter / encoder.depth if isinstance(encoder, FourierFrameNetConfig) else 0.0
    sizes, widths = x.num_atoms.tolist(), width.tolist()
    cost = [n * (k + cells * n) for n, k in zip(sizes, widths, strict=True)]
    order = sorted(range(len(x)), key=lambda i: (cells * sizes[i].bit_length(), widths[i]), reverse=True)
    groups: list[list[int]] = []
    room = 0.0
    for i in order:
        if not groups or cost[i] > room:
            groups.append([])
            room = float(budget)
        groups[-1].append(i)
        room -= cost[i]
    return [torch.tensor(group, device=x.device) for group in groups]


def _features(model: CrystalModel, x: CrystalBatch, edges: Topology | None) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        first = model(x, edges=edges).features
        if not knows_hands(model.config.encoder):
            return first.graph, first.node
        second = model(mirror(x)).features
        return 0.5 * (first.graph + second.graph), 0.5 * (first.node + second.node)
