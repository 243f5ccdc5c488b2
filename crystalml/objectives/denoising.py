"""The crystal-structure-prediction loss: denoise lattice and coordinates given the species."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from crystalml.crystal import CrystalBatch, Tangent
from crystalml.noise.product import CrystalNoise


def random_times(
    x: CrystalBatch,
    num_steps: int,
    generator: torch.Generator | None,
    focus: tuple[float, float] | None = None,
) -> Tensor:
    """(b,) levels in 1..T, stratified over the batch: one draw in each of b equal bins, shuffled.

    focus=None: t ~ U{1..T}. focus=(m, s): three quarters of the draws have logit(t / T) ~ N(m, s^2) (Esser
    et al. 2024), which spends a short run where structure is decided; the optimum at each level is the same.
    """
    b = len(x)
    u = torch.rand(b, generator=generator, device=x.device, dtype=torch.float64)
    bins = torch.randperm(b, generator=generator, device=x.device)
    u = (bins + u) / b
    if focus is not None:
        inner = ((u - 0.25) / 0.75).clamp(1e-9, 1 - 1e-9)
        u = torch.where(u < 0.25, 4 * u, torch.sigmoid(focus[0] + focus[1] * torch.special.ndtri(inner)))
    return (u * num_steps).long().clamp(max=num_steps - 1) + 1


def noise_losses(predicted: Tangent, target: Tangent, weight: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared errors of lattice noise and normalised score; weight (b,) counts the crystals."""
    assert predicted.lattice is not None and target.lattice is not None
    assert predicted.frac is not None and target.frac is not None
    lattice = (predicted.lattice - target.lattice).square().mean((-1, -2))
    frac = (predicted.frac - target.frac).square().mean(-1)
    atoms = weight[index]
    return (
        (lattice * weight).sum() / weight.sum().clamp(min=1),
        (frac * atoms).sum() / atoms.sum().clamp(min=1),
    )


@dataclass(frozen=True)
class Denoising:
    """L_L + L_F of DiffCSP (Eqs. 4, 8), CrysDiff and DAO (Eqs. 3-4); both weights 1.

    focus: see `random_times`; None is the published uniform draw of levels. only: noise and denoise this part
    alone around the other one clean (CrysDiff without joint diffusion, Figure 5); None for both at one level.
    """

    noise: CrystalNoise
    lattice_weight: float = 1.0
    frac_weight: float = 1.0
    focus: tuple[float, float] | None = None
    only: Literal["lattice", "frac"] | None = None

    def __call__(
        self, model: nn.Module, x: CrystalBatch, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """{"loss", "lattice", "frac"}: scalars, less the part that is not denoised."""
        noisy, t, target = self.noised(x, generator)
        return self.losses(model(noisy, t).noise, target, x)

    def noised(
        self, x: CrystalBatch, generator: torch.Generator | None = None
    ) -> tuple[CrystalBatch, Tensor, Tangent]:
        """The noisy batch, its levels (b,) and what a network shall say of it."""
        t = random_times(x, self.noise.num_steps, generator, self.focus)
        noisy, target = self.noise.perturb(x, t, generator)
        if self.only == "lattice":
            noisy = noisy.replace(frac=x.frac)
        elif self.only == "frac":
            noisy = noisy.replace(lattice=x.lattice)
        return noisy, t, target

    def losses(self, found: Tangent, target: Tangent, x: CrystalBatch) -> dict[str, Tensor]:
        """What `noised` asked for against what was said."""
        lattice, frac = noise_losses(found, target, torch.ones_like(x.lattice[:, 0, 0]), x.index)
        parts = {"lattice": (self.lattice_weight, lattice), "frac": (self.frac_weight, frac)}
        if self.only is not None:
            parts = {self.only: parts[self.only]}
        loss = sum((weight * value for weight, value in parts.values()), lattice.new_zeros(()))
        return {"loss": loss, **{name: value for name, (_, value) in parts.items()}}
