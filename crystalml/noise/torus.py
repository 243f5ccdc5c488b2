"""Diffusion of fractional coordinates on the torus, for networks that predict the way back (GemsDiff)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from crystalml.geometry.torus import logmap, wrap
from crystalml.noise.schedule import linear_betas
from crystalml.noise.wrapped import wrapped_score

_WINDINGS = 3  # k = -3..3: at sigma = 0.6 the next has a weight below 1e-6


@dataclass(frozen=True)
class TorusDDPM:
    """q(x_t | x_0) = [N(x_0, v_t I)] on the torus, v_t = 1 - abar_t (GemsDiff, Eq. 16).

    betas: (T + 1,) float64, betas[0] = 0. t: (n,) integers, one an atom. Networks predict the displacement
    x_0 - x_t (n, 3) in fractional coordinates, which every method here takes.

    posterior: how x_s is drawn given x_t and the predicted x_0. "exact": the Gaussian bridge over the winding
    numbers k, N(x_0 + (v_s / v_t)(d + k), v_s (v_t - v_s) / v_t) with d = x_t - x_0 and k drawn with weights
    exp(-(d + k)^2 / 2 v_t); it keeps the forward process's marginals. "code": w(x_0 + sqrt(beta_s) z), as
    the published code steps, which forgets x_t and so falls on the first x_0 within a few steps.

    reach: "code" steps with s > 0 go so many times as far as predicted. A network that learns by absolute
    error says the median of all ways back that are possible, and where it is not sure falls short.
    """

    betas: Tensor
    posterior: Literal["exact", "code"] = "exact"
    reach: float = 1.0

    @staticmethod
    def linear(
        num_steps: int = 100,
        last: float = 6e-3,
        posterior: Literal["exact", "code"] = "exact",
        reach: float = 1.0,
    ) -> TorusDDPM:
        """beta from 1e-6 to `last`. The paper's 2e-3 (Table 1) ends at sigma = 0.31, visibly not uniform."""
        return TorusDDPM(linear_betas(num_steps, 1e-6, last), posterior, reach)

    @property
    def num_steps(self) -> int:
        return len(self.betas) - 1

    @cached_property
    def variances(self) -> Tensor:
        """(T + 1,) v_t."""
        return -torch.expm1(torch.log1p(-self.betas).cumsum(0))

    @cached_property
    def sigmas(self) -> Tensor:
        """(T + 1,) sqrt(v_t)."""
        return self.variances.sqrt()

    def _at(self, table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return table.to(like.device)[t].to(like.dtype)[:, None]

    def perturb(self, x_0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """(w(x_0 + sqrt(v_t) eps), the shortest way back): what the network sees and what it shall say."""
        noise = self._at(self.sigmas, t, x_0) * eps
        return wrap(x_0 + noise), -logmap(noise)

    def score(self, prediction: Tensor, t: Tensor) -> Tensor:
        """+grad log q_t, the wrapped normal's around the predicted x_0."""
        return wrapped_score(-prediction, self._at(self.sigmas, t, prediction).expand_as(prediction))

    def variance(self, t: Tensor, s: Tensor, like: Tensor) -> Tensor:
        """Squared noise of the step t -> s."""
        if self.posterior == "code":
            return self._at(self.betas, s, like)
        v_t, v_s = self._at(self.variances, t, like), self._at(self.variances, s, like)
        return v_s * (v_t - v_s) / v_t

    def step(self, x_t: Tensor, prediction: Tensor, t: Tensor, s: Tensor, z: Tensor) -> Tensor:
        """From level t to any s < t, without the final wrap. z: (n, 3) standard normal."""
        x_0 = x_t + prediction
        if self.posterior == "code":
            farther = (self.reach - 1) * (s > 0).to(x_t.dtype)[:, None]
            return x_0 + farther * prediction + self.variance(t, s, x_t).sqrt() * z
        v_t, v_s = self._at(self.variances, t, x_t), self._at(self.variances, s, x_t)
        path, z = _wind(logmap(-prediction), v_t, z)
        return x_0 + v_s / v_t * path + self.variance(t, s, x_t).sqrt() * z

    def langevin(self, x: Tensor, prediction: Tensor, t: Tensor, size: Tensor, z: Tensor) -> Tensor:
        """One Langevin corrector step of the given size d at level t: x + d score + sqrt(2 d) z."""
        return x + size * self.score(prediction, t) + (2 * size).sqrt() * z


def _wind(delta: Tensor, variance: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """(d + k, z') with k drawn with weights exp(-(d + k)^2 / 2 v) and z' normal and independent of k.

    One number does for both: u = Phi(z) is uniform; the interval of the weights it falls in names k, and its
    place there is uniform again. Where one k has all the weight, z' = z.
    """
    k = torch.arange(-_WINDINGS, _WINDINGS + 1, device=delta.device, dtype=torch.float64)
    paths = delta.double()[..., None] + k
    weight = torch.softmax(-(paths**2) / (2 * variance.double()[..., None]), -1)
    upper = weight.cumsum(-1)
    u = torch.special.ndtr(z.double())
    which = (u[..., None] > upper).sum(-1).clamp(max=len(k) - 1)[..., None]
    share = weight.gather(-1, which)[..., 0]
    low = upper.gather(-1, which)[..., 0] - share
    place = ((u - low) / share).clamp(1e-15, 1 - 1e-15)
    path = paths.gather(-1, which)[..., 0]
    return path.to(delta.dtype), torch.special.ndtri(place).to(z.dtype)
