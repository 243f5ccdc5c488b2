"""FIRE: downhill with inertia."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.relaxation.coordinates import Vector, dot


@dataclass(frozen=True)
class Fire:
    """Velocities v follow the forces F and are mixed towards them, v <- (1 - a) v + a |v| F / |F|, while
    F.v > 0, and stop otherwise (Bitzek et al., PRL 97, 170201 (2006)), step by step as ase.optimize.FIRE.

    max_step: length of a step of all coordinates of a crystal together, in Angstrom. patience: steps downhill
    before the time step grows.
    """

    max_step: float = 0.2
    dt: float = 0.1
    dt_max: float = 1.0
    grow: float = 1.1
    shrink: float = 0.5
    mix: float = 0.1
    mix_decay: float = 0.99
    patience: int = 5

    def rest(self, x: CrystalBatch) -> CrystalBatch:
        """The crystals with the optimiser's state as labels, before the first step."""
        one = x.lattice.new_ones(len(x))
        labels = {
            **x.labels,
            "streak": torch.full_like(x.num_atoms, -1),  # has not moved yet
            "dt": self.dt * one,
            "mix": self.mix * one,
            "cell velocity": torch.zeros_like(x.lattice),
        }
        return x.replace(labels=labels, site_labels={**x.site_labels, "velocity": torch.zeros_like(x.frac)})

    def step(self, x: CrystalBatch, energy: Tensor, force: Vector) -> tuple[CrystalBatch, Vector]:
        """The crystals with their new state, and where each of them should go from here."""
        v = Vector(x.site_labels["velocity"], x.labels["cell velocity"])
        dt, mix, streak = x.labels["dt"], x.labels["mix"], x.labels["streak"]
        new = streak < 0
        downhill = ~new & (dot(x, force, v) > 0)
        uphill = ~new & ~downhill
        none = torch.zeros_like(mix)
        turn = torch.where(downhill, mix * (dot(x, v, v) / dot(x, force, force)).sqrt(), none)
        keep = torch.where(downhill, 1 - mix, none)
        faster = downhill & (streak > self.patience)
        dt = torch.where(faster, (dt * self.grow).clamp(max=self.dt_max), dt)
        dt = torch.where(uphill, dt * self.shrink, dt)
        mix = torch.where(faster, mix * self.mix_decay, mix)
        mix = torch.where(uphill, torch.full_like(mix, self.mix), mix)
        streak = torch.where(downhill, streak + 1, torch.zeros_like(streak))

        v = v.scaled(x, keep).plus(force.scaled(x, turn + dt))
        length = dt * dot(x, v, v).sqrt()
        labels = {**x.labels, "dt": dt, "mix": mix, "streak": streak, "cell velocity": v.cell}
        x = x.replace(labels=labels, site_labels={**x.site_labels, "velocity": v.atoms})
        return x, v.scaled(x, dt * (self.max_step / length).clamp(max=1.0))
