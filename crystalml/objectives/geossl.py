"""GeoSSL: pretraining on two views of a crystal, no labels (NeuralCrystal §3; Liu et al., ICLR 2022, 2023).

Each objective is a frozen dataclass that needs one head, `pretext`, on the model (None: none at all).
Everything runs in full precision: displacements are small beside positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

from crystalml.crystal import CrystalBatch
from crystalml.geometry.neighbors import neighbor_list
from crystalml.models.encoder import Features
from crystalml.models.pretext import Pretext
from crystalml.objectives.views import SIGMA, displaced, displacement

LEVELS = 1000.0  # noise levels are given to encoders as 0..1000, like those of the denoising models
TEMPERATURE = 0.1


def _views(
    model: nn.Module, x: CrystalBatch, sigma: float, generator: torch.Generator | None
) -> tuple[Features, Features, Tensor]:
    """Features of both views, from one pass over a batch of both, and the way (n, 3) from first to second."""
    step = displacement(x, sigma, generator)
    features = model(CrystalBatch.cat([x, displaced(x, step)])).features
    (first, second), (a, b) = features.node.chunk(2), features.graph.chunk(2)
    return Features(first, a), Features(second, b), step


@dataclass(frozen=True)
class PositionFlowMatching:
    """GeoSSL-PFM: velocity from one view to the other along the straight path between them (Eq. 14).

    g_s = g_1 + s (g_2 - g_1), s ~ U(0, 1). Towards the data the target is g_1 - g_2, towards the noise
    g_2 - g_1. As printed both are asked of one v(g_s), whose best answer is 0; so the direction is told, as
    the sign of the time given to the encoder: +1000 s towards the data, -1000 s towards the noise.
    reverse: share of crystals asked for the way to the noise. directed=False is the printed, symmetric form.
    Errors are in units of sigma^2, so a model that always says 0 scores 1.
    """

    pretext: ClassVar[Pretext | None] = "velocity"
    sigma: float = SIGMA
    reverse: float = 0.5
    directed: bool = True

    def __call__(
        self, model: nn.Module, x: CrystalBatch, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """{"loss", "velocity"}: scalars; velocity is the error towards the data alone."""
        with torch.autocast(x.device.type, enabled=False):
            step = displacement(x, self.sigma, generator)
            s, back = torch.rand(2, len(x), generator=generator, device=x.device, dtype=x.dtype)
            sign = torch.where(back < self.reverse, -1.0, 1.0) if self.directed else torch.ones_like(s)
            moved = displaced(x, s[x.index, None] * step)
            found = model.pretext_head(model(moved, LEVELS * s * sign).features)  # type: ignore[operator]
            target = -step / self.sigma
            error = (found - sign[x.index, None] * target).square().mean(-1)
            forth = (sign > 0)[x.index]
            report = (error * forth).sum() / forth.sum().clamp(min=1)
            if not self.directed:
                error = 0.5 * (error + (found + target).square().mean(-1))
            return {"loss": error.mean(), "velocity": report.detach()}


@dataclass(frozen=True)
class DistanceDenoising:
    """GeoSSL-DDM: the noise in the distances of one view, from the other's features (Liu et al., ICLR 2023).

    d' = d + sigma eps at geometric levels sigma; the target -(d' - d) / sigma^2 weighed by sigma^2 is eps
    with a factor one half. Both directions, halved. pairs: how many neighbours within `cutoff` are drawn
    from a batch; their list is found in the first view and read in both.
    """

    pretext: ClassVar[Pretext | None] = "distance"
    sigma: float = SIGMA
    levels: tuple[float, float] = (10.0, 0.01)
    num_levels: int = 50
    cutoff: float = 5.0
    pairs: int = 4096

    def __call__(
        self, model: nn.Module, x: CrystalBatch, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """{"loss"}: scalar; 0.5 for a model that always says 0."""
        with torch.autocast(x.device.type, enabled=False):
            a, b, step = _views(model, x, self.sigma, generator)
            edges = neighbor_list(x, self.cutoff)
            chosen = torch.randperm(len(edges.i), generator=generator, device=x.device)[: self.pairs]
            i, j, vector = edges.i[chosen], edges.j[chosen], edges.vector[chosen]
            second = torch.linalg.vector_norm(vector + step[j] - step[i], dim=-1)
            one = self._ask(model, a.node, i, j, second, generator)
            two = self._ask(model, b.node, i, j, edges.distance[chosen], generator)
            return {"loss": 0.5 * (one + two)}

    def _ask(
        self,
        model: nn.Module,
        node: Tensor,
        i: Tensor,
        j: Tensor,
        distance: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        high, low = self.levels
        table = torch.logspace(0, 1, self.num_levels, low / high, device=node.device, dtype=node.dtype) * high
        level = torch.randint(self.num_levels, distance.shape, generator=generator, device=node.device)
        sigma = table[level]
        eps = torch.randn(distance.shape, generator=generator, device=node.device, dtype=node.dtype)
        found = model.pretext_head(node, i, j, distance + sigma * eps, sigma)  # type: ignore[operator]
        return 0.5 * (found + eps).square().mean()


@dataclass(frozen=True)
class RepresentationReconstruction:
    """GeoSSL-RR: each view's embedding guessed from the other's, targets normalised and detached."""

    pretext: ClassVar[Pretext | None] = "reconstruction"
    sigma: float = SIGMA

    def __call__(
        self, model: nn.Module, x: CrystalBatch, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """{"loss"}: scalar."""
        with torch.autocast(x.device.type, enabled=False):
            a, b, _ = _views(model, x, self.sigma, generator)
            u, v = normalize(a.graph, dim=-1), normalize(b.graph, dim=-1)
            forth, back = model.pretext_head(u, v)  # type: ignore[operator]
            error = (forth - v.detach()).square() + (back - u.detach()).square()
            return {"loss": 0.5 * error.sum(-1).mean()}


@dataclass(frozen=True)
class Contrastive:
    """Embeddings of the two views of one crystal alike, of two crystals not: cosines over a temperature.

    "ebm-nce": binary cross-entropy, the negatives a cyclic shift of the batch, (L+ + L-) / 2. "infonce":
    symmetric cross-entropy, all other crystals of the batch the negatives.
    """

    pretext: ClassVar[Pretext | None] = None
    form: Literal["ebm-nce", "infonce"]
    sigma: float = SIGMA
    temperature: float = TEMPERATURE

    def __call__(
        self, model: nn.Module, x: CrystalBatch, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """{"loss"}: scalar."""
        with torch.autocast(x.device.type, enabled=False):
            a, b, _ = _views(model, x, self.sigma, generator)
            u, v = normalize(a.graph, dim=-1), normalize(b.graph, dim=-1)
            if self.form == "infonce":
                logits, own = u @ v.T / self.temperature, torch.arange(len(u), device=u.device)
                return {"loss": 0.5 * (cross_entropy(logits, own) + cross_entropy(logits.T, own))}
            alike = (u * v).sum(-1) / self.temperature
            other = (u * v.roll(1, 0)).sum(-1) / self.temperature
            loss = binary_cross_entropy_with_logits(alike, torch.ones_like(alike))
            if len(u) > 1:  # alone a crystal has no negative
                loss = 0.5 * (loss + binary_cross_entropy_with_logits(other, torch.zeros_like(other)))
            return {"loss": loss}


GeoSSL = PositionFlowMatching | DistanceDenoising | RepresentationReconstruction | Contrastive
