"""Diffusion of the lattice in the Lie algebra of GL(3): orientation, shape and volume (GemsDiff)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from crystalml.geometry import lie
from crystalml.noise.gaussian import GaussianDDPM
from crystalml.noise.schedule import linear_betas

# Mean and standard deviation of the coordinates over MP-20's training crystals. Orientation: the polar form
# has none, and the paper gives it unit noise.
MEAN = (0.0, 0.0, 0.0, 0.033, 0.041, 0.004, -0.081, -0.281, 2.917)
STD = (1.0, 1.0, 1.0, 0.236, 0.199, 0.229, 0.149, 0.346, 0.365)

LIMIT = 6.0  # standard deviations; the training crystals reach 5.4


@dataclass(frozen=True)
class LogLattice:
    """The cell as k = (<log L, B_i> - mean_i) / std_i, a vector; L = exp(sum_i (mean_i + std_i k_i) B_i).

    dof 6: k is that of P = (L L^T)^(1/2), and cells come back as P. dof 9: L = P Q with the angles of Q as
    the first three. The paper takes the logarithm of L as a whole, which need not be real.
    """

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    dof: Literal[6, 9] = 6

    def encode(self, lattice: Tensor) -> Tensor:
        """(b, 3, 3) Angstrom -> (b, dof) float64, without gradient."""
        log, turn = lie.polar(lattice)
        k = lie.coordinates(log)
        if self.dof == 9:
            k = k + lie.coordinates(lie.log_rotation(turn))
        return self.standardise(k)

    def standardise(self, k: Tensor) -> Tensor:
        """(b, 9) coordinates -> (b, dof), standardised."""
        return ((k - k.new_tensor(self.mean)) / k.new_tensor(self.std))[..., 9 - self.dof :]

    def decode(self, k: Tensor) -> Tensor:
        """(b, dof) -> (b, 3, 3) right-handed cells in Angstrom; differentiable, at equal eigenvalues too."""
        full = torch.cat([k.new_zeros(*k.shape[:-1], 9 - self.dof), k], -1)
        full = full * k.new_tensor(self.std) + k.new_tensor(self.mean)
        turn, stretch = full.clone(), full.clone()
        turn[..., 3:], stretch[..., :3] = 0.0, 0.0
        cell = torch.matrix_exp(lie.element(stretch))
        return cell if self.dof == 6 else cell @ torch.matrix_exp(lie.element(turn))


@dataclass(frozen=True)
class LieDDPM:
    """q(k_t | k_0) = N(sqrt(abar_t) k_0, (1 - abar_t) I) on the coordinates of `LogLattice` (methods §5).

    A lattice goes in and comes out of every method; networks predict log P_0, the symmetric logarithm of the
    clean cell (b, 3, 3), which needs no matrix function in the graph and is never left-handed.
    """

    ddpm: GaussianDDPM
    scale: LogLattice = field(default_factory=LogLattice)

    @staticmethod
    def linear(num_steps: int = 100, dof: Literal[6, 9] = 6) -> LieDDPM:
        """beta from 1e-5 to 1e-1 (GemsDiff, Table 1)."""
        return LieDDPM(GaussianDDPM(linear_betas(num_steps, 1e-5, 1e-1)), LogLattice(dof=dof))

    @property
    def num_steps(self) -> int:
        return self.ddpm.num_steps

    def _noise(self, eps: Tensor) -> Tensor:
        """(b, dof) of nine standard normal numbers a crystal."""
        return eps.double().flatten(-2)[..., 9 - self.scale.dof :]

    def perturb(self, lattice: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """L_t = exp(sum_i k_i B_i) of the noisy coordinates k_t; eps (b, 3, 3) standard normal."""
        k = self.ddpm.perturb(self.scale.encode(lattice), t, self._noise(eps))
        return self.scale.decode(k).to(lattice.dtype)

    def target(self, lattice: Tensor, eps: Tensor) -> Tensor:
        """What the network shall say: log P_0, whatever the noise."""
        return lie.polar(lattice)[0].to(lattice.dtype)

    def prior(self, z: Tensor) -> Tensor:
        return self.scale.decode(self._noise(z)).to(z.dtype)

    def step(
        self, lattice: Tensor, log: Tensor, t: Tensor, s: Tensor, z: Tensor, limit: float | None = None
    ) -> Tensor:
        """Ancestral step of the coordinates from level t to any s < t, with k_0 from the prediction.

        k_0 is kept within LIMIT standard deviations of the training crystals: no cell collapses on the way.
        limit: bound on a lattice's entries, which that makes superfluous; not used.
        """
        k_t = self.scale.encode(lattice)
        k_0 = self.scale.standardise(lie.coordinates(log.double())).clamp(-LIMIT, LIMIT)
        k = self.ddpm.step(k_t, self.ddpm.noise(k_t, k_0, t), t, s, self._noise(z))
        return self.scale.decode(k).to(lattice.dtype)

    def tilt(self, lattice: Tensor, gradient: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The lattice moved by -variance x gradient in the coordinates, given an energy's dE/dL."""
        k = self.scale.encode(lattice).requires_grad_()
        with torch.enable_grad():
            cell = self.scale.decode(k)
        turned = gradient.double()
        if self.scale.dof == 6:  # dE/dL of an energy blind to rotations turns with the cell: L = P Q
            turned = turned @ lie.polar(lattice)[1].mT
        (slope,) = torch.autograd.grad(cell, k, turned)
        moved = k.detach() - self.ddpm.variance(t, s, slope) * slope
        return self.scale.decode(moved).to(lattice.dtype)


@dataclass(frozen=True)
class PredictedCell:
    """No diffusion of the lattice: the network sees one cell at every level, the answer is its prediction.

    The later code of GemsDiff does so ("more efficient"). Its cell is the unit cube; here it is a cube of
    the training crystals' mean volume. Networks predict log P_0 as with `LieDDPM`.
    """

    num_steps: int = 100
    scale: LogLattice = field(default_factory=LogLattice)

    def _cube(self, like: Tensor) -> Tensor:
        edge = math.exp(self.scale.mean[8] / 3**0.5)
        return edge * torch.eye(3, dtype=like.dtype, device=like.device).expand(len(like), 3, 3)

    def perturb(self, lattice: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return self._cube(lattice)

    def target(self, lattice: Tensor, eps: Tensor) -> Tensor:
        return lie.polar(lattice)[0].to(lattice.dtype)

    def prior(self, z: Tensor) -> Tensor:
        return self._cube(z)

    def step(
        self, lattice: Tensor, log: Tensor, t: Tensor, s: Tensor, z: Tensor, limit: float | None = None
    ) -> Tensor:
        """The cube, and where s = 0 the predicted cell."""
        k = self.scale.standardise(lie.coordinates(log.double())).clamp(-LIMIT, LIMIT)
        done = (s == 0)[:, None, None]
        return torch.where(done, self.scale.decode(k).to(lattice.dtype), self._cube(lattice))

    def tilt(self, lattice: Tensor, gradient: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The lattice as it is: nothing random is left to tilt."""
        return lattice
