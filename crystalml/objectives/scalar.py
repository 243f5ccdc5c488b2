"""Denoising of a property: the objective with which CrysDiff fine-tunes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from crystalml.crystal import CrystalBatch
from crystalml.models.property_head import DiffusionHead
from crystalml.models.scalar_head import ScalarNoiseHead
from crystalml.noise.gaussian import GaussianDDPM
from crystalml.objectives.denoising import Denoising
from crystalml.objectives.regression import crystal_features, either_hand


@dataclass(frozen=True)
class ScalarDenoising:
    """mean |eps - eps(h, y_t, t)|^2 at a uniform level t in 1..T of each crystal (CrysDiff, Alg. 2).

    repeats: levels drawn for each crystal; the encoder, which costs the time, is asked once for all of them.
    """

    noise: GaussianDDPM
    repeats: int = 16

    def __call__(
        self,
        head: ScalarNoiseHead,
        features: Tensor,
        y: Tensor,
        generator: torch.Generator | None = None,
        level: Tensor | None = None,
    ) -> Tensor:
        """features (b, d) and standardised values y (b,) -> scalar loss. level: (b,), else drawn."""
        levels = (len(y), self.repeats)
        if level is None:
            top = self.noise.num_steps + 1
            t = torch.randint(1, top, levels, generator=generator, device=y.device).flatten()
        else:
            t = level.repeat_interleave(self.repeats)
        eps = torch.randn(levels, generator=generator, device=y.device, dtype=y.dtype).flatten()
        y_t = self.noise.perturb(y.repeat_interleave(self.repeats), t, eps)
        base = head.of_features(features).repeat_interleave(self.repeats, 0)
        return (head.read(base, y_t[:, None], t).squeeze(-1) - eps).square().mean()


@dataclass(frozen=True)
class PropertyDenoising:
    """`ScalarDenoising` of a label around clean crystals, by the diffusion head of a model.

    mirrored: as for `Regression`. structure: the crystal is no longer clean but noised to the level of its
    property, and both are denoised from one encoder pass, L_y + L_L + L_F (CrysDiff without fixed structures,
    Figure 5); the model then has noise heads.
    """

    denoising: ScalarDenoising
    label: str = "target"
    mirrored: bool = False
    structure: Denoising | None = None

    def __call__(
        self, model: nn.Module, x: CrystalBatch, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """{"loss"}: scalar; with `structure` also its parts "property", "lattice" and "frac"."""
        if self.mirrored:
            x = either_hand(x, generator)
        if self.structure is None:
            return {"loss": self._property(model, crystal_features(model, x), x, generator)}
        noisy, t, target = self.structure.noised(x, generator)
        out = model(noisy, t)
        level = t * self.denoising.noise.num_steps // self.structure.noise.num_steps
        y = self._property(model, out.features.graph.to(x.dtype), x, generator, level)
        losses = self.structure.losses(out.noise, target, x)
        return {**losses, "property": y, "loss": y + losses["loss"]}

    def _property(
        self,
        model: nn.Module,
        features: Tensor,
        x: CrystalBatch,
        generator: torch.Generator | None,
        level: Tensor | None = None,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            head: DiffusionHead = model.property_head  # type: ignore[assignment]
            return self.denoising(head.noise, head.standard(features), x.labels[self.label], generator, level)

    def watched(self) -> PropertyDenoising:
        """The same for validation, around clean crystals; its levels and noise are the generator's."""
        return replace(self, mirrored=False, structure=None)
