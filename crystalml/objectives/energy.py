"""The intermediate-energy objective of DAO-P: energies of crystals along the diffusion path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from crystalml.crystal import CrystalBatch
from crystalml.models.heads import EnergyScale
from crystalml.noise.product import CrystalNoise
from crystalml.objectives.denoising import noise_losses, random_times

_FLOOR, _CEIL = -10.0, 20.0  # e^{-f} overflows float32 squared at f = -45; gradients pass straight through


def intermediate_energy_loss(f: Tensor, y: Tensor, beta: float, form: Literal["exp", "poisson"]) -> Tensor:
    """Per-crystal loss whose minimiser is f = -log E[e^{-beta y} | M_t].

    exp: (e^{-f} - e^{-beta y})^2 (DAO, Eq. 10). poisson: e^{-f} + u f with u = e^{-beta y}: a Bregman loss
    with the same minimiser, convex in f, gradient u - e^{-f}.
    """
    f = f + (f.clamp(_FLOOR, _CEIL) - f).detach()
    u = torch.exp(-beta * y)
    if form == "exp":
        return (torch.exp(-f) - u).square()
    return torch.exp(-f) + u * f


@dataclass(frozen=True)
class IntermediateEnergy:
    """L_L + L_F + L_IEP of DAO-P (§4.4), with a share of clean crystals.

    Relaxation and property heads call f(M, 0), which t ~ U{1..T} never trains: with probability `clean`
    a crystal keeps t = 0. There E is certain, every regression loss has the same optimum, and the
    absolute error is used. Crystals whose label is NaN train the noise heads alone. Where the data have the
    label `off_equilibrium`, crystals with 1 there (rattled frames) always keep t = 0: they are no samples
    of the distribution that the noise heads learn.
    """

    noise: CrystalNoise
    scale: EnergyScale
    label: str = "energy"
    form: Literal["exp", "poisson"] = "exp"
    clean: float = 0.2
    energy_weight: float = 1.0
    noise_weight: float = 1.0

    def __call__(
        self, model: nn.Module, x: CrystalBatch, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """{"loss", "lattice", "frac", "energy", "clean_mae"}: scalars; clean_mae in eV/atom."""
        t = random_times(x, self.noise.num_steps, generator)
        keep = torch.rand(len(x), generator=generator, device=x.device) < self.clean
        if "off_equilibrium" in x.labels:
            keep = keep | (x.labels["off_equilibrium"] == 1)
        t = torch.where(keep, torch.zeros_like(t), t)
        noisy, target = self.noise.perturb(x, t, generator)
        out = model(noisy, t)
        lattice, frac = noise_losses(out.noise, target, (t > 0).to(x.dtype), x.index)

        y = self.scale.to_network(x.labels[self.label])
        known = y.isfinite()
        y = torch.where(known, y, torch.zeros_like(y))
        error = (out.energy - y).abs()
        noisy_loss = intermediate_energy_loss(out.energy, y, self.scale.beta, self.form)
        energy = (torch.where(keep, error, noisy_loss) * known).sum() / known.sum().clamp(min=1)
        clean = known & keep
        mae = (error * clean).sum() / clean.sum().clamp(min=1) * self.scale.std
        loss = self.noise_weight * (lattice + frac) + self.energy_weight * energy
        return {
            "loss": loss,
            "lattice": lattice,
            "frac": frac,
            "energy": energy,
            "clean_mae": mae.detach(),
        }
