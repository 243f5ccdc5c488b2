"""Denoising of a property: the objective with which CrysDiff fine-tunes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from crystalml.crystal import CrystalBatch
from crystalml.models.property_head import DiffusionHead
from crystalml.models.scalar_head import ScalarNoiseHead
from crystalml.noise.gaussian import GaussianDDPM
from crystalml.objectives.regression import crystal_features


@dataclass(frozen=True)
class ScalarDenoising:
    """mean |eps - eps(h, y_t, t)|^2 at a uniform level t in 1..T of each crystal (CrysDiff, Alg. 2).

    repeats: levels drawn for each crystal; the encoder, which costs the time, is asked once for all of them.
    """

    noise: GaussianDDPM
    repeats: int = 16

    def __call__(
        self, head: ScalarNoiseHead, features: Tensor, y: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """features (b, d) and standardised values y (b,) -> scalar loss."""
        levels = (len(y), self.repeats)
        t = torch.randint(1, self.noise.num_steps + 1, levels, generator=generator, device=y.device).flatten()
        eps = torch.randn(levels, generator=generator, device=y.device, dtype=y.dtype).flatten()
        y_t = self.noise.perturb(y.repeat_interleave(self.repeats), t, eps)
        base = head.of_features(features).repeat_interleave(self.repeats, 0)
        return (head.read(base, y_t[:, None], t).squeeze(-1) - eps).square().mean()


@dataclass(frozen=True)
class PropertyDenoising:
    """`ScalarDenoising` of a standardised label around clean crystals, by the diffusion head of a model.

    mirrored: as for `Regression`.
    """

    denoising: ScalarDenoising
    label: str = "target"
    mirrored: bool = False

    def __call__(
        self, model: nn.Module, x: CrystalBatch, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """{"loss"}: scalar."""
        features = crystal_features(model, x, self.mirrored, generator)
        with torch.autocast(x.device.type, enabled=False):
            head: DiffusionHead = model.property_head  # type: ignore[assignment]
            h = head.standard(features)
            return {"loss": self.denoising(head.noise, h, x.labels[self.label], generator)}

    def watched(self) -> PropertyDenoising:
        """The same for validation; its levels and noise are the generator's."""
        return replace(self, mirrored=False)
