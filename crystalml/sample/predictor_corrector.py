"""Predictor-corrector sampling of lattice and coordinates."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch, Tangent
from crystalml.errors import InputError
from crystalml.geometry.torus import wrap
from crystalml.models.layers import fast_autocast
from crystalml.noise.product import CrystalNoise
from crystalml.noise.rng import SampleNoise

Denoiser = Callable[[CrystalBatch, Tensor], Tangent]
Guide = Callable[[CrystalBatch, Tensor], Tangent]


@dataclass(frozen=True)
class PredictorCorrector:
    """Annealed Langevin corrector and ancestral predictor over the noise levels (methods K7).

    order="code": corrector then predictor, both at level t, step d = gamma (sigma_t / sigma_1)^2; it
    produced DiffCSP's numbers. order="paper": predictor t -> s, corrector at s, d = gamma sigma_s / sigma_1
    (DAO, Algorithm 1). steps: how many of the T levels to visit, evenly spread; None visits all.
    gamma: 1e-5 is DiffCSP's for MP-20 and MPTS-52. corrector=False leaves the plain ancestral sampler.
    max_length: bound in Angstrom on the entries of the predicted clean lattice.
    """

    noise: CrystalNoise
    steps: int | None = None
    order: Literal["code", "paper"] = "code"
    gamma: float = 1e-5
    corrector: bool = True
    max_length: float | None = 60.0
    autocast: bool | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and not 1 <= self.steps <= self.noise.num_steps:
            raise InputError(f"steps must lie in 1..{self.noise.num_steps}, not {self.steps}")

    def levels(self) -> list[int]:
        """T = t_0 > t_1 > ... > t_S = 0."""
        steps = self.steps or self.noise.num_steps
        return torch.linspace(self.noise.num_steps, 0, steps + 1, dtype=torch.float64).round().int().tolist()

    @property
    def evaluations(self) -> int:
        """Network evaluations per sample."""
        steps = len(self.levels()) - 1
        if not self.corrector:
            return steps
        return 2 * steps - (self.order == "paper")

    def trajectory(
        self, denoiser: Denoiser, template: CrystalBatch, seeds: Tensor, guide: Guide | None = None
    ) -> Iterator[CrystalBatch]:
        """Yield the prior draw, then the batch after every level; the last item is the sample.

        template gives species and counts; its lattice and coordinates are ignored. seeds: (b,) int64; a
        sample is a function of its seed alone. guide: (x, t) -> gradients of an energy, already scaled.
        """
        draws = SampleNoise(seeds, template.num_atoms)
        x = self.noise.prior(template, draws)
        yield x
        levels = self.levels()
        step = self._code_step if self.order == "code" else self._paper_step
        for t, s in pairwise(levels):
            with torch.no_grad():
                x = step(denoiser, x, t, s, draws, guide)
            yield x

    def sample(
        self, denoiser: Denoiser, template: CrystalBatch, seeds: Tensor, guide: Guide | None = None
    ) -> CrystalBatch:
        """The last item of the trajectory."""
        return deque(self.trajectory(denoiser, template, seeds, guide), maxlen=1)[0]

    def _code_step(
        self, denoiser: Denoiser, x: CrystalBatch, t: int, s: int, draws: SampleNoise, guide: Guide | None
    ) -> CrystalBatch:
        if self.corrector:
            sigmas = self.noise.frac.sigmas
            x = self._correct(denoiser, x, t, float(self.gamma * (sigmas[t] / sigmas[1]) ** 2), draws, s > 0)
        return self._predict(denoiser, x, t, s, draws, guide)

    def _paper_step(
        self, denoiser: Denoiser, x: CrystalBatch, t: int, s: int, draws: SampleNoise, guide: Guide | None
    ) -> CrystalBatch:
        x = self._predict(denoiser, x, t, s, draws, guide)
        if s == 0 or not self.corrector:  # sigma_0 = 0: the step would have size zero at an untrained level
            return x
        sigmas = self.noise.frac.sigmas
        return self._correct(denoiser, x, s, float(self.gamma * sigmas[s] / sigmas[1]), draws, True)

    def _call(self, denoiser: Denoiser, x: CrystalBatch, t: int) -> tuple[Tangent, Tensor]:
        level = torch.full((len(x),), t, device=x.device)
        enabled = self.autocast if x.dtype == torch.float32 else False
        with fast_autocast(x.device, enabled):
            return denoiser(x, level), level

    def _correct(
        self, denoiser: Denoiser, x: CrystalBatch, t: int, size: float, draws: SampleNoise, noisy: bool
    ) -> CrystalBatch:
        out, level = self._call(denoiser, x, t)
        assert out.frac is not None
        z = draws.atom_normal(3 * t + 1).to(x.frac) if noisy else torch.zeros_like(x.frac)
        d = torch.full_like(x.frac[:, :1], size)
        return x.replace(frac=wrap(self.noise.frac.langevin(x.frac, out.frac, level[x.index], d, z)))

    def _predict(
        self, denoiser: Denoiser, x: CrystalBatch, t: int, s: int, draws: SampleNoise, guide: Guide | None
    ) -> CrystalBatch:
        """From level t to s; guidance adds -std_F^2 grad_F E and -beta-tilde grad_L E (DAO, Algorithm 1)."""
        out, level = self._call(denoiser, x, t)
        assert out.frac is not None and out.lattice is not None
        atoms, target = level[x.index], torch.full_like(level, s)
        z_f, z_l = torch.zeros_like(x.frac), torch.zeros_like(x.lattice)
        if s > 0:
            z_f, z_l = draws.atom_normal(3 * t + 2).to(x.frac), draws.lattice_normal(3 * t + 3).to(x.lattice)
        frac = self.noise.frac.step(x.frac, out.frac, atoms, target[x.index], z_f)
        lattice = self.noise.lattice.step(x.lattice, out.lattice, level, target, z_l, self.max_length)
        if guide is not None:
            pull = guide(x, level)
            if pull.frac is not None:
                frac = frac - self.noise.frac.variance(atoms, target[x.index], frac) * pull.frac
            if pull.lattice is not None:
                lattice = self.noise.lattice.tilt(lattice, pull.lattice, level, target)
        return x.replace(frac=wrap(frac), lattice=lattice)
