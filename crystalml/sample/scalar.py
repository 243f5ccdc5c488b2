"""Chains of a property's diffusion: scalars only, the crystal is encoded once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crystalml.models.scalar_head import ScalarNoiseHead
from crystalml.noise.gaussian import GaussianDDPM


@dataclass(frozen=True)
class ScalarChains:
    """y_0 ~ p(y | crystal) by ancestral steps over `steps` evenly spaced levels (CrysDiff, Alg. 3).

    low, high: bounds of y_0 while denoising, training values and some: near t = T an error of the noise
    comes back 157 times larger in y_0. steps = None visits all levels.
    """

    noise: GaussianDDPM
    low: float
    high: float
    steps: int | None = 100

    def __call__(self, head: ScalarNoiseHead, features: Tensor, chains: int = 20, seed: int = 0) -> Tensor:
        """features (b, d) -> (b, chains) standardised values.

        All crystals share the chains' random numbers, so that what is said of a crystal depends on the seed
        and never on its company. Chains come in pairs z, -z: each is a draw like any other, and with noise
        that is affine in y their mean is exact but for the bounds.
        """
        levels = (
            torch.linspace(self.noise.num_steps, 0, (self.steps or self.noise.num_steps) + 1).round().long()
        )
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(len(levels), (chains + 1) // 2, generator=generator).to(features)
        z = torch.stack([z, -z], -1).flatten(1)[:, :chains]
        y = z[0].expand(len(features), chains)
        base = head.of_features(features)
        for k, (t, s) in enumerate(zip(levels[:-1, None], levels[1:, None], strict=True), start=1):
            t, s = t.to(features.device), s.to(features.device)
            clean = self.noise.clean(y, head.read(base, y, t), t).clamp(self.low, self.high)
            y = self.noise.step(y, self.noise.noise(y, clean, t), t, s, z[k])
        return y
