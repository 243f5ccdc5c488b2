"""Variance-preserving Gaussian diffusion of any Euclidean field; here of the lattice matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from crystalml.noise.schedule import cosine_betas, linear_betas


def _at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Entries t of a table, shaped to broadcast over `like`, whose rows t counts."""
    picked = table.to(like.device)[t].to(like.dtype)
    return picked.reshape(-1, *[1] * (like.dim() - 1))


@dataclass(frozen=True)
class GaussianDDPM:
    """q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I) (Ho et al. 2020; DAO, Eq. 3).

    betas: (T + 1,) float64, betas[0] = 0. All methods take t as (b,) integers in 0..T.
    """

    betas: Tensor

    @staticmethod
    def cosine(num_steps: int = 1000) -> GaussianDDPM:
        return GaussianDDPM(cosine_betas(num_steps))

    @property
    def num_steps(self) -> int:
        return len(self.betas) - 1

    @cached_property
    def alpha_bar(self) -> Tensor:
        """(T + 1,) abar_t = prod (1 - beta_s)."""
        return (1 - self.betas).cumprod(0)

    def perturb(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps."""
        bar = _at(self.alpha_bar, t, x_0)
        return bar.sqrt() * x_0 + (1 - bar).sqrt() * eps

    def clean(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_0 = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)."""
        bar = _at(self.alpha_bar, t, x_t)
        return (x_t - (1 - bar).sqrt() * eps) / bar.sqrt()

    def target(self, x_0: Tensor, eps: Tensor) -> Tensor:
        """What the network shall say: the noise."""
        return eps

    def noise(self, x_t: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        """eps = (x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t)."""
        bar = _at(self.alpha_bar, t, x_t)
        return (x_t - bar.sqrt() * x_0) / (1 - bar).sqrt()

    def score(self, eps: Tensor, t: Tensor) -> Tensor:
        """+grad log q_t = -eps / sqrt(1 - abar_t)."""
        return -eps / (1 - _at(self.alpha_bar, t, eps)).sqrt()

    def variance(self, t: Tensor, s: Tensor, like: Tensor) -> Tensor:
        """Posterior variance of x_s given x_t and x_0, s < t; beta-tilde_t for s = t - 1."""
        bar_t, bar_s = _at(self.alpha_bar, t, like), _at(self.alpha_bar, s, like)
        return (1 - bar_t / bar_s) * (1 - bar_s) / (1 - bar_t)

    def step(
        self, x_t: Tensor, eps: Tensor, t: Tensor, s: Tensor, z: Tensor, limit: float | None = None
    ) -> Tensor:
        """Ancestral step from level t to any s < t; for s = t - 1 it is DDPM's Algorithm 2.

        x_s = [sqrt(abar_s) (1 - a) x_0 + sqrt(a) (1 - abar_s) x_t] / (1 - abar_t) + sqrt(variance) z,
        a = abar_t / abar_s and x_0 = `clean`(x_t, eps), its entries kept within +-limit: near t = T an error
        of 0.01 in eps is one of 600 in x_0, which long steps would carry into x_s.
        """
        bar_t, bar_s = _at(self.alpha_bar, t, x_t), _at(self.alpha_bar, s, x_t)
        a, x_0 = bar_t / bar_s, self.clean(x_t, eps, t)
        if limit is not None:
            x_0 = x_0.clamp(-limit, limit)
        mean = (bar_s.sqrt() * (1 - a) * x_0 + a.sqrt() * (1 - bar_s) * x_t) / (1 - bar_t)
        return mean + self.variance(t, s, x_t).sqrt() * z

    def tilt(self, x_s: Tensor, gradient: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The sample x_s of the step t -> s moved by -variance x gradient of an energy."""
        return x_s - self.variance(t, s, x_s) * gradient

    def prior(self, z: Tensor) -> Tensor:
        """x_T from standard normal numbers."""
        return z


def lattice_ddpm(num_steps: int = 1000) -> GaussianDDPM:
    """The lattice process of DiffCSP, DAO and CrysDiff: cosine schedule, matrix entries in Angstrom.

    The matrix is not standardised; abar_T = 2.4e-10 makes the prior N(0, 1) all the same.
    """
    return GaussianDDPM.cosine(num_steps)


def property_ddpm(num_steps: int = 1000) -> GaussianDDPM:
    """The process of CrysDiff on a standardised property: linear schedule of CARD (Han et al. 2022).

    CARD's prior N(m, 1) around a guess m makes no new process: it is this one on y - m. Its posterior
    gamma_0 y_0 + gamma_1 y_t + gamma_2 m has gamma_0 + gamma_1 + gamma_2 = 1.
    """
    return GaussianDDPM(linear_betas(num_steps))
