"""Predictor-corrector sampling of lattice and coordinates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.elements import atomic_masses
from crystalml.geometry.torus import wrap
from crystalml.noise.product import CrystalNoise
from crystalml.noise.rng import Draws
from crystalml.sample.base import (
    Denoiser,
    Guide,
    Hold,
    as_draws,
    ask,
    begin,
    check_levels,
    last,
    spaced,
)


@dataclass(frozen=True)
class PredictorCorrector:
    """Annealed Langevin corrector and ancestral predictor over the noise levels (methods K7).

    order="code": corrector then predictor, both at level t, step d = gamma (sigma_t / sigma_1)^2; it
    produced DiffCSP's numbers. order="paper": predictor t -> s, corrector at s, d = gamma sigma_s / sigma_1
    (DAO, Algorithm 1). steps: how many of the T levels to visit, evenly spread; None visits all.
    gamma: 1e-5 is DiffCSP's for MP-20 and MPTS-52. corrector=False leaves the plain ancestral sampler.
    start: a level to begin at, with the template's crystals noised to it; None begins at the prior.
    max_length: bound in Angstrom on the entries of the predicted clean lattice. density: bounds in g/cm^3;
    a crystal whose step leaves them keeps the cell it had, as in GemsDiff's code.
    """

    noise: CrystalNoise
    steps: int | None = None
    order: Literal["code", "paper"] = "code"
    gamma: float = 1e-5
    corrector: bool = True
    start: int | None = None
    max_length: float | None = 60.0
    density: tuple[float, float] | None = None
    autocast: bool | None = None

    def __post_init__(self) -> None:
        check_levels(self.noise, self.steps, self.start)

    def levels(self) -> list[int]:
        """t_0 > t_1 > ... > 0, t_0 = T or `start`."""
        return spaced(self.noise, self.steps, self.start)

    @property
    def evaluations(self) -> int:
        """Network evaluations per sample."""
        steps = len(self.levels()) - 1
        if not self.corrector:
            return steps
        return 2 * steps - (self.order == "paper")

    def trajectory(
        self,
        denoiser: Denoiser,
        template: CrystalBatch,
        seeds: Tensor | Draws,
        guide: Guide | None = None,
        hold: Hold | None = None,
    ) -> Iterator[CrystalBatch]:
        """Yield the first draw, then the batch after every level; the last item is the sample.

        template gives species and counts; its lattice and coordinates count only with `start`. seeds: (b,)
        int64; a sample is a function of its seed alone. guide: (x, t) -> gradients of an energy, already
        scaled. hold: puts what is known in its place after every move.
        """
        draws = as_draws(seeds, template)
        levels = self.levels()
        x = begin(self.noise, template, draws, self.start)
        yield (x := x if hold is None else hold(x, levels[0]))
        step = self._code_step if self.order == "code" else self._paper_step
        for t, s in pairwise(levels):
            with torch.no_grad():
                x = step(denoiser, x, t, s, draws, guide)
                x = x if hold is None else hold(x, s)
            yield x

    def sample(
        self,
        denoiser: Denoiser,
        template: CrystalBatch,
        seeds: Tensor | Draws,
        guide: Guide | None = None,
        hold: Hold | None = None,
    ) -> CrystalBatch:
        """The last item of the trajectory."""
        return last(self.trajectory(denoiser, template, seeds, guide, hold))

    def _code_step(
        self, denoiser: Denoiser, x: CrystalBatch, t: int, s: int, draws: Draws, guide: Guide | None
    ) -> CrystalBatch:
        if self.corrector:
            sigmas = self.noise.frac.sigmas
            x = self._correct(denoiser, x, t, float(self.gamma * (sigmas[t] / sigmas[1]) ** 2), draws, s > 0)
        return self._predict(denoiser, x, t, s, draws, guide)

    def _paper_step(
        self, denoiser: Denoiser, x: CrystalBatch, t: int, s: int, draws: Draws, guide: Guide | None
    ) -> CrystalBatch:
        x = self._predict(denoiser, x, t, s, draws, guide)
        if s == 0 or not self.corrector:  # sigma_0 = 0: the step would have size zero at an untrained level
            return x
        sigmas = self.noise.frac.sigmas
        return self._correct(denoiser, x, s, float(self.gamma * sigmas[s] / sigmas[1]), draws, True)

    def _correct(
        self, denoiser: Denoiser, x: CrystalBatch, t: int, size: float, draws: Draws, noisy: bool
    ) -> CrystalBatch:
        score, _, level = ask(denoiser, x, t, self.autocast)
        z = draws.atom_normal(3 * t + 1).to(x.frac) if noisy else torch.zeros_like(x.frac)
        d = torch.full_like(x.frac[:, :1], size)
        return x.replace(frac=wrap(self.noise.frac.langevin(x.frac, score, level[x.index], d, z)))

    def _predict(
        self, denoiser: Denoiser, x: CrystalBatch, t: int, s: int, draws: Draws, guide: Guide | None
    ) -> CrystalBatch:
        """From level t to s; guidance adds -std_F^2 grad_F E and -beta-tilde grad_L E (DAO, Algorithm 1)."""
        score, eps, level = ask(denoiser, x, t, self.autocast)
        atoms, target = level[x.index], torch.full_like(level, s)
        z_f, z_l = torch.zeros_like(x.frac), torch.zeros_like(x.lattice)
        if s > 0:
            z_f, z_l = draws.atom_normal(3 * t + 2).to(x.frac), draws.lattice_normal(3 * t + 3).to(x.lattice)
        frac = self.noise.frac.step(x.frac, score, atoms, target[x.index], z_f)
        lattice = self.noise.lattice.step(x.lattice, eps, level, target, z_l, self.max_length)
        if guide is not None:
            pull = guide(x, level)
            if pull.frac is not None:
                frac = frac - self.noise.frac.variance(atoms, target[x.index], frac) * pull.frac
            if pull.lattice is not None:
                lattice = self.noise.lattice.tilt(lattice, pull.lattice, level, target)
        if self.density is not None:
            kept = within(self.density, x.replace(lattice=lattice))
            lattice = torch.where(kept[:, None, None], lattice, x.lattice)
        return x.replace(frac=wrap(frac), lattice=lattice)


def within(density: tuple[float, float], x: CrystalBatch) -> Tensor:
    """(b,) whether a crystal's density lies within bounds in g/cm^3; False where it is not a number."""
    mass = atomic_masses().to(x.lattice)[x.numbers]
    total = mass.new_zeros(len(x)).index_add(0, x.index, mass)
    value = total / x.volume * 1.66053907  # u per cubic Angstrom
    return (value >= density[0]) & (value <= density[1])
