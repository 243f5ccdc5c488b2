"""Features of crystals and atoms from any encoder, in batches that fit the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.geometry.torus import wrap
from crystalml.models.fourierframenet import FourierFrameNetConfig
from crystalml.models.model import CrystalModel, EncoderConfig
from crystalml.models.periodic import PeriodicConfig
from crystalml.predict import pack, pack_neighbors, pair_budget

_NEIGHBOR_PAIRS = 2**14  # of encoders whose pairs are short rows: larger groups leave the cache


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
    encoder = model.config.encoder
    if isinstance(encoder, PeriodicConfig | FourierFrameNetConfig):
        groups = pack_neighbors(x, encoder.cutoff, max_pairs or _budget(weight.device))
    else:
        groups = pack(x.num_atoms, max_pairs or pair_budget(weight.device, gradient=False))
    graphs, nodes = [], []
    for group in groups:
        part = x[group.to(weight.device)]
        graph, node = _features(model, part)
        graphs.append(graph)
        nodes.append(node)
        if report is not None:
            report(len(part))
    order = torch.cat(groups).to(weight.device)
    back = torch.argsort(order)
    counts = x.num_atoms[order]
    sites = CrystalBatch(
        counts.new_zeros(len(x.numbers)), x.frac, x.lattice, counts, site_labels={"node": torch.cat(nodes)}
    )
    return Embedding(torch.cat(graphs)[back], sites[back].site_labels["node"])


def _features(model: CrystalModel, x: CrystalBatch) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        first = model(x).features
        if not knows_hands(model.config.encoder):
            return first.graph, first.node
        second = model(mirror(x)).features
        return 0.5 * (first.graph + second.graph), 0.5 * (first.node + second.node)


def _budget(device: torch.device) -> int:
    return _NEIGHBOR_PAIRS if device.type == "cpu" else 2**20
