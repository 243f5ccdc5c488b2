"""The noise of a whole crystal: one process per field."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch, Tangent
from crystalml.geometry.torus import remove_mean, wrap
from crystalml.noise.gaussian import GaussianDDPM, lattice_ddpm
from crystalml.noise.rng import SampleNoise
from crystalml.noise.wrapped import WrappedNormal


@dataclass(frozen=True)
class CrystalNoise:
    """Gaussian lattice x wrapped-normal coordinates, sharing one time index; species are held.

    centered: subtract each crystal's mean displacement. A translation-invariant network cannot see it,
    so about 1/N of the coordinate loss is otherwise irreducible (all of it for N = 1). DiffCSP keeps it.
    """

    lattice: GaussianDDPM
    frac: WrappedNormal
    centered: bool = False

    @staticmethod
    def diffcsp(num_steps: int = 1000, centered: bool = False) -> CrystalNoise:
        """Cosine lattice schedule and sigma in 0.005..0.5, T = 1000 (DiffCSP, Table 5)."""
        return CrystalNoise(lattice_ddpm(num_steps), WrappedNormal.geometric(num_steps), centered)

    @property
    def num_steps(self) -> int:
        return self.lattice.num_steps

    def perturb(
        self, x: CrystalBatch, t: Tensor, generator: torch.Generator | None = None
    ) -> tuple[CrystalBatch, Tangent]:
        """The noisy batch at levels t (b,) and the targets (lattice noise, normalised score)."""

        def normal(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)

        eps, noise = normal(x.lattice), normal(x.frac)
        if self.centered:
            noise = remove_mean(noise, x.index, x.num_atoms)
        frac, target = self.frac.perturb(x.frac, t[x.index], noise)
        if self.centered:  # wrapping bends the mean away from zero
            target = remove_mean(target, x.index, x.num_atoms)
        noisy = x.replace(lattice=self.lattice.perturb(x.lattice, t, eps), frac=frac)
        return noisy, Tangent(lattice=eps, frac=target)

    def prior(self, template: CrystalBatch, noise: SampleNoise) -> CrystalBatch:
        """x_T: lattice N(0, I), coordinates uniform; species and counts of the template."""
        lattice = noise.lattice_normal(0).to(template.lattice)
        frac = noise.atom_uniform(0).to(template.frac)
        return template.replace(lattice=self.lattice.prior(lattice), frac=wrap(frac))
