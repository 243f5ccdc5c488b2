"""What every encoder gives, and the inputs they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from crystalml.crystal import CrystalBatch
from crystalml.elements import element_features
from crystalml.geometry.fourier import fourier_features
from crystalml.geometry.lattice import gram, log_metric
from crystalml.geometry.torus import wrap
from crystalml.models.layers import TimeEmbedding
from crystalml.models.pairs import Pairs

Metric = Literal["gram", "log", "raw"]
"""How cells, and along pairs coordinates, are shown; "raw", the numbers as they are, is no invariant."""


@dataclass(frozen=True)
class EdgeFeatures:
    """edge: (n, K, e) features of the pairs. weight: (n, K) what each counts, zero at the last one's end."""

    pairs: Pairs
    weight: Tensor
    edge: Tensor


@dataclass(frozen=True)
class Features:
    """node: (n, d) per-atom features. graph: (b, d) their mean over each crystal.

    repulsion: (n,) short-range energy in eV that the encoder leaves to the energy head, None for none.
    edges: what heads that act along pairs of atoms read, None from an encoder without such pairs.
    vector: (n, 3, c) per-atom vectors that turn with the crystal, None for none.
    """

    node: Tensor
    graph: Tensor
    repulsion: Tensor | None = None
    edges: EdgeFeatures | None = None
    vector: Tensor | None = None


def metric_features(lattice: Tensor, metric: Metric) -> Tensor:
    """Rotation-invariant lattice features: G = L L^T (9) as printed, or log lengths and cosines (6).

    "raw" is the matrix L itself (9), which turns with the crystal.
    """
    if metric == "log":
        return log_metric(lattice)
    return (gram(lattice) if metric == "gram" else lattice).flatten(-2)


METRIC_DIM = {"gram": 9, "log": 6, "raw": 9}


def edge_dim(metric: Metric, frequencies: int) -> int:
    """Width of `edge_inputs`."""
    return METRIC_DIM[metric] + (12 if metric == "raw" else 6) * frequencies


def pair_displacements(x: CrystalBatch) -> Tensor:
    """(b, N, N, 3) padded w(F_j - F_i) for every ordered pair, self included."""
    frac = x.pad(x.frac)
    return wrap(frac[:, None] - frac[:, :, None])


class NodeEmbedding(nn.Module):
    """h^0 = Linear[element features (92) | time embedding] (DAO §4.2; methods K6)."""

    elements: Tensor

    def __init__(self, dim: int, time_dim: int) -> None:
        super().__init__()
        table = element_features()
        self.register_buffer("elements", table)
        self.time = TimeEmbedding(time_dim)
        self.mix = nn.Linear(table.shape[1] + time_dim, dim)

    def forward(self, x: CrystalBatch, t: Tensor) -> Tensor:
        """(n, dim)."""
        species = self.elements[x.numbers]
        return self.mix(torch.cat([species, self.time(t)[x.index].to(species.dtype)], -1))


def pool(h: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real atoms: (b, N, d), (b, N) -> (b, d)."""
    weight = mask[..., None].to(h.dtype)
    return (h * weight).sum(1) / weight.sum(1)


def unpad(values: Tensor, x: CrystalBatch) -> Tensor:
    """(b, N, ...) -> (n, ...)."""
    return values.flatten(0, 1)[x.slots()]


def edge_inputs(x: CrystalBatch, frequencies: int, metric: Metric, first: int = 1) -> Tensor:
    """[metric | psi(F_j - F_i)], (b, N, N, METRIC_DIM + 6 K).

    "raw": [L | psi(F_i) | psi(F_j)], which change when the crystal is turned or shifted as a whole. There to
    measure what invariance is worth (CrysDiff, Figure 5).
    """
    if metric == "raw":
        one = fourier_features(x.pad(x.frac), frequencies, first)
        both = torch.broadcast_tensors(one[:, :, None], one[:, None])
        psi = torch.cat(both, -1)
    else:
        psi = fourier_features(pair_displacements(x), frequencies, first)
    lattice = metric_features(x.lattice, metric)[:, None, None].expand(*psi.shape[:3], -1)
    return torch.cat([lattice, psi], -1)


class DenseEncoder(nn.Module):
    """CrystalBatch, t -> Features over all padded pairs; a network adds its layers in `core`."""

    def __init__(self, dim: int, time_dim: int, frequencies: int, metric: Metric) -> None:
        super().__init__()
        self.dim, self.frequencies, self.metric = dim, frequencies, metric
        self.embed = NodeEmbedding(dim, time_dim)

    def forward(self, x: CrystalBatch, t: Tensor) -> Features:
        mask = x.mask
        h = x.pad(self.embed(x, t))
        h = self.core(h, edge_inputs(x, self.frequencies, self.metric), mask)
        return Features(unpad(h, x), pool(h, mask))

    def core(self, h: Tensor, inputs: Tensor, mask: Tensor) -> Tensor:
        """(b, N, dim), (b, N, N, w), (b, N) -> (b, N, dim): free of Python-side shapes, so it compiles."""
        raise NotImplementedError
