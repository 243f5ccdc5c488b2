"""Straight paths from crystals to noise, learned by their velocity: flow matching (Lipman et al. 2023).

x_tau runs from the crystal at tau = t / T = 0 to the prior at tau = 1 with constant speed v; a network that
minimises E|out - v|^2 says the mean of v at x_tau, whose ODE carries the prior to the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from crystalml.errors import UnsupportedError
from crystalml.geometry.torus import wrap


@dataclass(frozen=True)
class LinearFlow:
    """L_tau = (1 - tau) L_0 + tau z, v = z - L_0, z of standard normal numbers in Angstrom.

    Networks predict v / unit, (b, 3, 3): cells have entries of that size (Angstrom). t, s are (b,).
    """

    num_steps: int = 1000
    unit: float = 5.0

    def perturb(self, lattice: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        tau = _share(t, self.num_steps, lattice)
        return (1 - tau) * lattice + tau * eps

    def target(self, lattice: Tensor, eps: Tensor) -> Tensor:
        """What the network shall say: the velocity, in units of `unit`."""
        return (eps - lattice) / self.unit

    def prior(self, z: Tensor) -> Tensor:
        return z

    def step(
        self, lattice: Tensor, out: Tensor, t: Tensor, s: Tensor, z: Tensor, limit: float | None = None
    ) -> Tensor:
        """Euler's step from level t to s; nothing is random, and a velocity needs no limit."""
        return lattice + self.unit * _share(s - t, self.num_steps, lattice) * out

    def tilt(self, lattice: Tensor, gradient: Tensor, t: Tensor, s: Tensor) -> Tensor:
        raise _no_score()


@dataclass(frozen=True)
class GeodesicFlow:
    """F_tau = w(F_0 + tau u), the shortest way from F_0 to a uniform F_1, u = logmap(F_1 - F_0) (Chen and
    Lipman 2024; for crystals Miller et al. 2024, FlowMM).

    u is drawn as Phi(eps) - 1/2 from standard normal numbers, which makes F_1 uniform. Networks predict
    sqrt(12) u, (n, 3), of unit variance. t, s are (n,). The numbers eps must be independent: their mean over
    a crystal may be taken out of u, not of eps.
    """

    num_steps: int = 1000

    @property
    def sigmas(self) -> Tensor:
        """(T + 1,) standard deviation of each coordinate around F_0."""
        return torch.linspace(0, 1 / math.sqrt(12), self.num_steps + 1, dtype=torch.float64)

    def perturb(self, x_0: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """(F_tau, sqrt(12) u): what the network sees and what it shall say."""
        u = torch.special.ndtr(eps) - 0.5
        return wrap(x_0 + _share(t, self.num_steps, x_0) * u), math.sqrt(12) * u

    def step(self, x_t: Tensor, out: Tensor, t: Tensor, s: Tensor, z: Tensor) -> Tensor:
        """Euler's step from level t to s, without the final wrap."""
        return x_t + _share(s - t, self.num_steps, x_t) * out / math.sqrt(12)

    def score(self, out: Tensor, t: Tensor) -> Tensor:
        raise _no_score()

    def variance(self, t: Tensor, s: Tensor, like: Tensor) -> Tensor:
        raise _no_score()

    def langevin(self, x: Tensor, out: Tensor, t: Tensor, size: Tensor, z: Tensor) -> Tensor:
        raise _no_score()


def _share(t: Tensor, num_steps: int, like: Tensor) -> Tensor:
    """tau = t / T, shaped to broadcast over `like`, whose rows t counts."""
    return (t.to(like.dtype) / num_steps).reshape(-1, *[1] * (like.dim() - 1))


def _no_score() -> UnsupportedError:
    return UnsupportedError("a flow has velocities, no scores: neither correctors nor guidance apply to it")
