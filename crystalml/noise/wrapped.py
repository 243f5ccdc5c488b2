"""Wrapped-normal diffusion of fractional coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from crystalml.geometry.torus import logmap, wrap
from crystalml.noise.schedule import geometric_sigmas

_IMAGES = 10  # k = -10..10, as in DiffCSP's code
_QUADRATURE = 512  # the integrand is smooth and periodic: already exact to double precision
_NARROW = 0.05  # below, images are > 10 sigma away and E[score^2] = 1 / sigma^2 to double precision


def wrapped_score(delta: Tensor, sigma: Tensor) -> Tensor:
    """+d/dF log sum_k N(delta + k; 0, sigma^2), per coordinate, as a softmax over images.

    The quotient of the two sums underflows to 0/0 in float32 beyond 13 sigma; the softmax does not.
    """
    x = logmap(delta)[..., None]
    k = torch.arange(-_IMAGES, _IMAGES + 1, device=delta.device, dtype=delta.dtype)
    var = (sigma**2)[..., None]
    weight = torch.softmax(-((x + k) ** 2) / (2 * var), -1)
    return -(weight * (x + k)).sum(-1) / var[..., 0]


def score_norms(sigmas: Tensor) -> Tensor:
    """m_t = E[score^2] per coordinate by quadrature over one period; entry 0 (clean) is 1."""
    sigmas = sigmas.double()
    wide = sigmas > _NARROW
    x = (torch.arange(_QUADRATURE, dtype=torch.float64) + 0.5) / _QUADRATURE - 0.5
    sigma = sigmas[wide][:, None]
    k = torch.arange(-5, 6, dtype=torch.float64)  # sigma <= 0.5: k = 5 is 9 sigma away
    density = torch.exp(-((x[:, None] + k) ** 2) / (2 * sigma[..., None] ** 2)).sum(-1)
    score = wrapped_score(x.expand(len(sigma), -1), sigma.expand(-1, len(x)))
    norms = torch.where(sigmas > 0, 1 / sigmas.clamp(min=1e-12) ** 2, torch.ones_like(sigmas))
    norms[wide] = (density * score**2).sum(-1) / density.sum(-1)
    return norms


@dataclass(frozen=True)
class WrappedNormal:
    """q(F_t | F_0) = sum_k N(F_t + k; F_0, sigma_t^2) on the torus (DiffCSP, Eq. 5; DAO, Eq. 4).

    sigmas: (T + 1,) float64, sigmas[0] = 0. t: (n,) integers, one an atom. Networks predict the
    normalised score, score / sqrt(m_t); every method here takes that prediction.
    """

    sigmas: Tensor

    @staticmethod
    @lru_cache  # the table of norms is worth keeping
    def geometric(num_steps: int = 1000, first: float = 0.005, last: float = 0.5) -> WrappedNormal:
        return WrappedNormal(geometric_sigmas(num_steps, first, last))

    @property
    def num_steps(self) -> int:
        return len(self.sigmas) - 1

    @cached_property
    def norms(self) -> Tensor:
        """(T + 1,) m_t = E[score^2] per coordinate."""
        return score_norms(self.sigmas)

    def _at(self, table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return table.to(like.device)[t].to(like.dtype)[:, None]

    def perturb(self, x_0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """(w(F_0 + sigma_t eps), normalised score): what the network sees and what it shall say."""
        sigma = self._at(self.sigmas, t, x_0)
        noise = sigma * eps
        clean = sigma == 0
        target = wrapped_score(noise, torch.where(clean, torch.ones_like(sigma), sigma).expand_as(noise))
        target = target / self._at(self.norms, t, x_0).sqrt()
        return wrap(x_0 + noise), torch.where(clean, torch.zeros_like(target), target)

    def score(self, prediction: Tensor, t: Tensor) -> Tensor:
        """+grad log q_t = sqrt(m_t) x prediction."""
        return prediction * self._at(self.norms, t, prediction).sqrt()

    def variance(self, t: Tensor, s: Tensor, like: Tensor) -> Tensor:
        """Squared noise of the predictor step t -> s: sigma_s^2 (sigma_t^2 - sigma_s^2) / sigma_t^2."""
        v_t, v_s = self._at(self.sigmas, t, like) ** 2, self._at(self.sigmas, s, like) ** 2
        return v_s * (v_t - v_s) / v_t

    def step(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor, z: Tensor) -> Tensor:
        """Ancestral predictor from level t to any s < t (methods K7), without the final wrap."""
        v_t, v_s = self._at(self.sigmas, t, x_t) ** 2, self._at(self.sigmas, s, x_t) ** 2
        return x_t + (v_t - v_s) * self.score(prediction, t) + self.variance(t, s, x_t).sqrt() * z

    def langevin(self, x: Tensor, prediction: Tensor, t: Tensor, size: Tensor, z: Tensor) -> Tensor:
        """One Langevin corrector step of the given size d at level t: F + d score + sqrt(2 d) z."""
        return x + size * self.score(prediction, t) + (2 * size).sqrt() * z
