"""The probability-flow ODE of lattice and coordinates: samples in tens of network evaluations.

Both fields obey d(x / b)/dlambda = e^lambda D in lambda = log(a / b), with x_t = a x_0 + b eps and D(x, t)
the mean of x_0 given x_t (Song et al. 2021, Eq. 13, in the variables of Lu et al. 2022, Eq. 8): for the
lattice a^2 = abar_t, b^2 = 1 - abar_t; on the torus a = 1, b = sigma_t and D - F = sigma_t^2 score. With D
linear in lambda over a step of length h, the integral is exact:

    x_s = (b_s / b_t) x_t + a_s (1 - e^-h) [D_t + w(h) (D_s - D_t)],   w = 1 / (1 - e^-h) - 1 / h.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.errors import UnsupportedError
from crystalml.geometry.torus import wrap
from crystalml.noise.gaussian import GaussianDDPM
from crystalml.noise.product import CrystalNoise
from crystalml.noise.rng import Draws
from crystalml.noise.wrapped import WrappedNormal
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

Method = Literal["euler", "heun", "multistep"]


@dataclass(frozen=True)
class ProbabilityFlow:
    """Exponential integrators of the probability-flow ODE, deterministic but for the draw they start from.

    method="euler": D_t held over the step, one evaluation, first order; the lattice's is DDIM (Song et al.
    2020). "heun": D_s from an Euler step, two evaluations, second order (Karras et al. 2022). "multistep":
    the slope of D from the step before, one evaluation, second order (Lu et al. 2022, DPM-Solver++ 2M). The
    last step is Euler's, since networks are not trained at the clean level, and so is multistep's first.

    steps: levels visited, evenly spread; None visits all. start: a level to begin at, with the template's
    crystals noised to it; None begins at the prior. max_length: bound in Angstrom on the entries of the
    predicted clean lattice.
    """

    noise: CrystalNoise
    steps: int | None = 25
    method: Method = "heun"
    start: int | None = None
    max_length: float = 60.0
    autocast: bool | None = None

    def __post_init__(self) -> None:
        check_levels(self.noise, self.steps, self.start)
        if not (isinstance(self.noise.lattice, GaussianDDPM) and isinstance(self.noise.frac, WrappedNormal)):
            raise UnsupportedError(
                "the probability flow is written for Gaussian lattices and wrapped-normal coordinates "
                "(dao-g, diffcsp); sample other processes with solver='ancestral'"
            )

    def levels(self) -> list[int]:
        """t_0 > t_1 > ... > 0, t_0 = T or `start`."""
        return spaced(self.noise, self.steps, self.start)

    @property
    def evaluations(self) -> int:
        """Network evaluations per sample."""
        steps = len(self.levels()) - 1
        return 2 * steps - 1 if self.method == "heun" else steps

    def trajectory(
        self,
        denoiser: Denoiser,
        template: CrystalBatch,
        seeds: Tensor | Draws,
        guide: Guide | None = None,
        hold: Hold | None = None,
    ) -> Iterator[CrystalBatch]:
        """Yield the first draw, then the batch after every level; arguments as PredictorCorrector's."""
        levels = self.levels()
        x = begin(self.noise, template, as_draws(seeds, template), self.start)
        yield (x := x if hold is None else hold(x, levels[0]))
        before: tuple[_Mean, _Steps] | None = None
        for t, s in pairwise(levels):
            with torch.no_grad():
                mean, step = self._mean(denoiser, x, t, guide), self._steps(t, s)
                if self.method == "heun" and s > 0:
                    ahead = self._mean(denoiser, step.move(x, mean), s, guide)
                    used = mean.towards(ahead, step.weight)
                elif self.method == "multistep" and s > 0 and before is not None:
                    used = mean.towards(before[0], -step.weight * step.length / before[1].length)
                else:
                    used = mean
                moved = step.move(x, used)  # not wrapped: the means of this step refer to it
                x = moved.replace(frac=wrap(moved.frac))
                x = x if hold is None else hold(x, s)
                turns = (x.frac - moved.frac).round()
                before = _Mean(mean.lattice, mean.frac + turns), step
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

    def _coefficients(self, t: int) -> tuple[Tensor, Tensor]:
        """(a, b) of lattice and coordinates at level t, float64."""
        lattice, frac = self.noise.lattice, self.noise.frac
        assert isinstance(lattice, GaussianDDPM)
        bar, sigma = lattice.alpha_bar[t], frac.sigmas[t]
        return torch.stack([bar.sqrt(), torch.ones_like(sigma)]), torch.stack([(1 - bar).sqrt(), sigma])

    def _steps(self, t: int, s: int) -> _Steps:
        (a_t, b_t), (a_s, b_s) = self._coefficients(t), self._coefficients(s)
        return _Steps(a_s, b_s / b_t, a_t * b_s / (b_t * a_s))

    def _mean(self, denoiser: Denoiser, x: CrystalBatch, t: int, guide: Guide | None) -> _Mean:
        """D(x, t); a guide's energy adds its gradient to minus the score, hence -b^2 / a of it to D."""
        out, eps, level = ask(denoiser, x.replace(frac=wrap(x.frac)), t, self.autocast)
        lattice, frac = self.noise.lattice, self.noise.frac
        assert isinstance(lattice, GaussianDDPM)
        shift = float(frac.sigmas[t]) ** 2 * frac.score(out.to(x.frac), level[x.index])
        clean = lattice.clean(x.lattice, eps.to(x.lattice), level)
        if guide is not None:
            pull, bar = guide(x, level), float(lattice.alpha_bar[t])
            if pull.frac is not None:
                shift = shift - float(frac.sigmas[t]) ** 2 * pull.frac
            if pull.lattice is not None:
                clean = clean - (1 - bar) / bar**0.5 * pull.lattice
        return _Mean(clean.clamp(-self.max_length, self.max_length), x.frac + shift)


@dataclass(frozen=True)
class _Mean:
    """D(x, t): (b, 3, 3) lattices and (n, 3) coordinates, not wrapped."""

    lattice: Tensor
    frac: Tensor

    def towards(self, other: _Mean, weight: Tensor) -> _Mean:
        """self + weight (other - self); weight (2,): lattice, coordinates."""
        w_l, w_f = weight.tolist()
        return _Mean(
            self.lattice + w_l * (other.lattice - self.lattice), self.frac + w_f * (other.frac - self.frac)
        )


@dataclass(frozen=True)
class _Steps:
    """One step t -> s of lattice and coordinates (2,): a_s, b_s / b_t and e^-h."""

    a: Tensor
    ratio: Tensor
    decay: Tensor

    @property
    def length(self) -> Tensor:
        """h = lambda_s - lambda_t."""
        return -self.decay.log()

    @property
    def weight(self) -> Tensor:
        """w(h) of the module: 1/2 for short steps, 1 for long ones."""
        h = self.length.clamp(min=1e-6)
        return torch.where(h < 1e-3, 0.5 + h / 12, 1 / (1 - torch.exp(-h)) - 1 / h)

    def move(self, x: CrystalBatch, mean: _Mean) -> CrystalBatch:
        """x_s from x_t and the mean used over the step; coordinates are left unwrapped."""
        (a, _), (ratio, _), (keep, keep_f) = self.a.tolist(), self.ratio.tolist(), self.decay.tolist()
        lattice = ratio * x.lattice + a * (1 - keep) * mean.lattice
        return x.replace(lattice=lattice, frac=x.frac + (1 - keep_f) * (mean.frac - x.frac))
