"""The loss of networks that predict the clean crystal: its cell and the way back of each atom (GemsDiff)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from crystalml.crystal import CrystalBatch
from crystalml.geometry import lattice as cell_geometry
from crystalml.geometry import lie
from crystalml.geometry.assignment import nearest_way
from crystalml.geometry.torus import remove_mean, shortest
from crystalml.noise.lie import LogLattice
from crystalml.noise.product import CrystalNoise
from crystalml.objectives.denoising import random_times

# Standard deviations over MP-20's training crystals of a, b, c (Angstrom), alpha, beta, gamma (degrees).
PARAMS_STD = (1.81, 1.83, 3.81, 16.3, 14.4, 22.0)


@dataclass(frozen=True)
class Reconstruction:
    """L^rho + L^x (GemsDiff, Eqs. 15 and 20).

    lattice_loss="k": mean squared error of the cell's standardised logarithm, no matrix function in the
    graph. "params": mean absolute error of standardised lengths and angles, as in the published code. Both
    compare with the clean cell, which Algorithm 2 asks for; Eq. 15 names the posterior's mean.
    metric="cart": mean absolute error of the displacements in Angstrom on the clean cell, the shortest of 27
    images taken there. "frac": squared error of fractional ones, each coordinate's shortest (Eq. 20).
    exchange: the way back leads to the likeliest of the arrangements that are the same crystal, equal atoms
    exchanged and all shifted (`geometry.assignment`), not to where each atom came from: above a third of T
    that is nobody's guess, and the ways cross.
    focus: see `random_times`; None is the published uniform draw of levels.
    """

    noise: CrystalNoise
    lattice_loss: Literal["k", "params"] = "k"
    metric: Literal["cart", "frac"] = "cart"
    exchange: bool = False
    lattice_weight: float = 1.0
    frac_weight: float = 1.0
    focus: tuple[float, float] | None = None
    scale: LogLattice = field(default_factory=LogLattice)

    def __call__(
        self, model: nn.Module, x: CrystalBatch, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """{"loss", "lattice", "frac"}: scalars."""
        t = random_times(x, self.noise.num_steps, generator, self.focus)
        noisy, target = self.noise.perturb(x, t, generator)
        out = model(noisy, t).noise
        assert target.lattice is not None and target.frac is not None
        with torch.autocast(x.device.type, enabled=False):  # three digits of ln V would be 2 % of the volume
            way = nearest_way(x, noisy.frac) if self.exchange else target.frac
            lattice = self.lattice_error(out.lattice, target.lattice)
            frac = self.frac_error(out.frac, way, x)
        loss = self.lattice_weight * lattice + self.frac_weight * frac
        return {"loss": loss, "lattice": lattice, "frac": frac}

    def lattice_error(self, out: Tensor, target: Tensor) -> Tensor:
        """Scalar, from predicted and true log P_0 (b, 3, 3)."""
        if self.lattice_loss == "k":
            out, target = (self.scale.standardise(lie.coordinates(log)) for log in (out, target))
            return (out - target).square().mean()
        out, target = (cell_geometry.params(torch.matrix_exp(log)) for log in (out, target))
        return ((out - target) / out.new_tensor(PARAMS_STD)).abs().mean()

    def frac_error(self, out: Tensor, target: Tensor, x: CrystalBatch) -> Tensor:
        """Scalar, from predicted and true displacements (n, 3) of the crystals x."""
        cell = x.lattice[x.index]
        if self.metric == "cart":
            target = shortest(target, cell)
        if self.noise.centered:
            target = remove_mean(target, x.index, x.num_atoms)
        if self.metric == "frac":
            return (out - target).square().mean()
        return ((out - target)[:, None] @ cell).abs().mean()
