"""Chains of a property's diffusion: scalars only, the crystal is encoded once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crystalml.models.scalar_head import ScalarNoiseHead
from crystalml.noise.gaussian import GaussianDDPM

_CRYSTALS = 64  # at a time: what the head works on then stays in the processor's cache


@dataclass(frozen=True)
class ScalarChains:
    """y_0 ~ p(y | crystal) by ancestral steps over `steps` evenly spaced levels (CrysDiff, Alg. 3).

    low, high: bounds of y_0 while denoising, (b, 1) or one for all crystals, training values and some: near
    t = T an error of the noise comes back 157 times larger in y_0. steps = None visits all levels.
    """

    noise: GaussianDDPM
    low: Tensor | float
    high: Tensor | float
    steps: int | None = 50

    def __call__(self, head: ScalarNoiseHead, features: Tensor, chains: int = 20, seed: int = 0) -> Tensor:
        """features (b, d) -> (b, chains) standardised values.

        All crystals share the chains' random numbers, so that what is said of a crystal depends on the seed
        and never on its company. Chains come in pairs z, -z: each is a draw like any other, and with noise
        that is affine in y their mean is exact but for the bounds.
        """
        steps = self.steps or self.noise.num_steps
        levels = torch.linspace(self.noise.num_steps, 0, steps + 1).round().long()
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(len(levels), (chains + 1) // 2, generator=generator).to(features)
        z = torch.stack([z, -z], -1).flatten(1)[:, :chains]
        low, high = (
            torch.as_tensor(bound).to(features).expand(len(features), 1) for bound in (self.low, self.high)
        )
        levels = levels.to(features.device)
        return torch.cat(
            [
                self._walk(head, h, (bottom, top), levels, z)
                for h, bottom, top in zip(
                    features.split(_CRYSTALS), low.split(_CRYSTALS), high.split(_CRYSTALS), strict=True
                )
            ]
        )

    def _walk(
        self, head: ScalarNoiseHead, h: Tensor, bounds: tuple[Tensor, Tensor], levels: Tensor, z: Tensor
    ) -> Tensor:
        """The same with numbers z (steps + 1, chains) given."""
        y = z[0].expand(len(h), -1)
        base = head.of_features(h)
        for k, (t, s) in enumerate(zip(levels[:-1, None], levels[1:, None], strict=True), start=1):
            clean = self.noise.clean(y, head.read(base, y, t), t).clamp(*bounds)
            y = self.noise.step(y, self.noise.noise(y, clean, t), t, s, z[k])
        return y
