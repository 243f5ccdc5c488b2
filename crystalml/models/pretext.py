"""Heads of pretraining tasks: what they ask of an encoder, and what fine-tuning throws away."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from crystalml.errors import ArchitectureError
from crystalml.models.encoder import Features
from crystalml.models.layers import MLP

Pretext = Literal["velocity", "distance", "reconstruction"]


class VelocityHead(nn.Module):
    """One vector an atom, sum_c w_c g_c(s) v_c with gates g of the atom's scalars: it turns with the crystal.

    Without the gates the task would never reach the layers that make the final scalars, which are all that a
    property head reads later.
    """

    def __init__(self, dim: int, vectors: int) -> None:
        super().__init__()
        self.gate, self.mix = nn.Linear(dim, vectors), nn.Linear(vectors, 1, bias=False)

    def forward(self, features: Features) -> Tensor:
        """(n, 3)."""
        assert features.vector is not None
        out: Tensor = self.mix(2 * torch.sigmoid(self.gate(features.node))[:, None] * features.vector)
        return out.squeeze(-1)


class DistanceHead(nn.Module):
    """What was added to a distance, from its atoms' features in another view: (m,) in units of sigma."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ends, self.given = nn.Linear(dim, 2 * dim, bias=False), nn.Linear(2, dim)
        self.net = MLP(dim, dim, 1)

    def forward(self, node: Tensor, i: Tensor, j: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        """node (n, d); pairs i, j, their noisy distances in Angstrom and noise levels (m,)."""
        first, second = self.ends(node).chunk(2, -1)
        given = torch.stack([noisy / (1 + sigma), sigma.log()], -1)
        both = first[i] + first[j] + second[i] * second[j]  # a pair has no order
        out: Tensor = self.net(silu(both + self.given(given))).squeeze(-1)
        return out


class ReconstructionHead(nn.Module):
    """Guesses of one view's embedding from the other's, one autoencoder for each direction."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.forth, self.back = MLP(dim, dim, dim), MLP(dim, dim, dim)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (b, d) of both views -> a guess of the second, a guess of the first."""
        return self.forth(first), self.back(second)


def pretext_head(kind: Pretext, dim: int, vectors: int | None) -> nn.Module:
    """The head of a task on an encoder with dim scalars and so many vectors (None: no vectors)."""
    if kind == "velocity":
        if vectors is None:
            raise ArchitectureError(
                "flow matching of positions needs an encoder with vectors, such as FourierFrameNet"
            )
        return VelocityHead(dim, vectors)
    if kind not in ("distance", "reconstruction"):
        raise ArchitectureError(f"unknown pretraining head {kind!r}")
    return DistanceHead(dim) if kind == "distance" else ReconstructionHead(dim)
