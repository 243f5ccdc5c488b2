"""The noise of a whole crystal: one process per field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch, Tangent
from crystalml.geometry.torus import remove_mean, wrap
from crystalml.noise.gaussian import lattice_ddpm
from crystalml.noise.lie import LieDDPM, PredictedCell
from crystalml.noise.rng import Draws
from crystalml.noise.torus import TorusDDPM
from crystalml.noise.wrapped import WrappedNormal


class LatticeNoise(Protocol):
    """A process on cells (b, 3, 3); t, s are (b,). What `out` means, the process and its network agree on."""

    @property
    def num_steps(self) -> int: ...
    def perturb(self, lattice: Tensor, t: Tensor, eps: Tensor, /) -> Tensor: ...
    def target(self, lattice: Tensor, eps: Tensor, /) -> Tensor: ...
    def prior(self, z: Tensor, /) -> Tensor: ...
    def step(
        self, lattice: Tensor, out: Tensor, t: Tensor, s: Tensor, z: Tensor, limit: float | None = None, /
    ) -> Tensor: ...
    def tilt(self, lattice: Tensor, gradient: Tensor, t: Tensor, s: Tensor, /) -> Tensor: ...


class FracNoise(Protocol):
    """A process on the torus of coordinates (n, 3); t, s are (n,)."""

    @property
    def num_steps(self) -> int: ...
    @property
    def sigmas(self) -> Tensor: ...
    def perturb(self, x_0: Tensor, t: Tensor, eps: Tensor, /) -> tuple[Tensor, Tensor]: ...
    def score(self, out: Tensor, t: Tensor, /) -> Tensor: ...
    def variance(self, t: Tensor, s: Tensor, like: Tensor, /) -> Tensor: ...
    def step(self, x_t: Tensor, out: Tensor, t: Tensor, s: Tensor, z: Tensor, /) -> Tensor: ...
    def langevin(self, x: Tensor, out: Tensor, t: Tensor, size: Tensor, z: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class CrystalNoise:
    """A process for the lattice x one for the coordinates, sharing one time index; species are held.

    centered: subtract each crystal's mean displacement. A translation-invariant network cannot see it,
    so about 1/N of the coordinate loss is otherwise irreducible (all of it for N = 1). DiffCSP keeps it.
    """

    lattice: LatticeNoise
    frac: FracNoise
    centered: bool = False

    @staticmethod
    def diffcsp(num_steps: int = 1000, centered: bool = False) -> CrystalNoise:
        """Cosine lattice schedule and sigma in 0.005..0.5, T = 1000 (DiffCSP, Table 5)."""
        return CrystalNoise(lattice_ddpm(num_steps), WrappedNormal.geometric(num_steps), centered)

    @staticmethod
    def gemsdiff(
        num_steps: int = 100,
        last: float = 6e-3,
        posterior: Literal["exact", "code"] = "code",
        reach: float = 1.3,
        lattice_mode: Literal["diffuse", "predict"] = "diffuse",
        dof: Literal[6, 9] = 6,
    ) -> CrystalNoise:
        """Lie-algebra lattice and torus of GemsDiff, whose mean displacement is always removed.

        last: beta_T of the coordinates, 2e-3 in the paper's Table 1. posterior, reach: see `TorusDDPM`; steps
        of the published code, a little longer, match most crystals (docs/gemsdiff.md).
        lattice_mode="predict": no diffusion of the lattice, see `PredictedCell`. dof 9 noises the orientation
        too, as in the paper.
        """
        cell = LieDDPM.linear(num_steps, dof) if lattice_mode == "diffuse" else PredictedCell(num_steps)
        return CrystalNoise(cell, TorusDDPM.linear(num_steps, last, posterior, reach), centered=True)

    @property
    def num_steps(self) -> int:
        return self.lattice.num_steps

    def perturb(
        self, x: CrystalBatch, t: Tensor, generator: torch.Generator | None = None
    ) -> tuple[CrystalBatch, Tangent]:
        """The noisy batch at levels t (b,) and what its processes want to hear of it."""

        def normal(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)

        eps, noise = normal(x.lattice), normal(x.frac)
        if self.centered:
            noise = remove_mean(noise, x.index, x.num_atoms)
        frac, target = self.frac.perturb(x.frac, t[x.index], noise)
        if self.centered:  # wrapping bends the mean away from zero
            target = remove_mean(target, x.index, x.num_atoms)
        noisy = x.replace(lattice=self.lattice.perturb(x.lattice, t, eps), frac=frac)
        return noisy, Tangent(lattice=self.lattice.target(x.lattice, eps), frac=target)

    def prior(self, template: CrystalBatch, noise: Draws) -> CrystalBatch:
        """x_T: lattice from its process's prior, coordinates uniform; species and counts of the template."""
        lattice = noise.lattice_normal(0).to(template.lattice)
        frac = noise.atom_uniform(0).to(template.frac)
        return template.replace(lattice=self.lattice.prior(lattice), frac=wrap(frac))

    def at_level(self, x: CrystalBatch, t: int, noise: Draws) -> CrystalBatch:
        """x_t of every crystal, drawn from q(x_t | x); t = 0 gives x itself."""
        level = torch.full((len(x),), t, device=x.device)
        eps, shift = noise.lattice_normal(0).to(x.lattice), noise.atom_normal(0).to(x.frac)
        if self.centered:
            shift = remove_mean(shift, x.index, x.num_atoms)
        frac, _ = self.frac.perturb(x.frac, level[x.index], shift)
        return x.replace(lattice=self.lattice.perturb(x.lattice, level, eps), frac=frac)
