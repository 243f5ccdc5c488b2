"""Relaxation of many crystals in one batch: FIRE on atoms and cells; finished ones make room for others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.errors import InputError
from crystalml.geometry.torus import wrap

Potential = Callable[[CrystalBatch], Mapping[str, Tensor]]
"""A batch -> "energy" (b,) in eV, "forces" (n, 3) in eV/A, "stress" (b, 3, 3) in eV/A^3: as Predictor."""


@dataclass(frozen=True)
class Relaxed:
    """Where a crystal ended: its labels are those it came with."""

    crystal: CrystalBatch  # of one
    energy: float  # eV a cell
    fmax: float  # eV/A, cell included
    steps: int
    converged: bool


@dataclass(frozen=True)
class BatchedFire:
    """Fast inertial relaxation of each crystal on its own clock; the batch only shares the evaluations.

    Velocities v follow the forces F and are mixed towards them, v <- (1 - a) v + a |v| F / |F|, while
    F.v > 0, and stop otherwise (Bitzek et al., PRL 97, 170201 (2006)), step by step as ase.optimize.FIRE.
    The cell moves by L <- L exp(Q / N), with the force -V stress / N on Q, scaled as in ASE's
    FrechetCellFilter. Cells of crystals that are not periodic in all directions stay as they are.

    fmax: converged when no force, nor row of the cell's, exceeds this, in eV/A. max_steps: then give up.
    max_atoms: how many to evaluate at once; a crystal with more comes alone. max_step: of all coordinates
    of a crystal together, in Angstrom.
    """

    fmax: float = 0.05
    max_steps: int = 500
    cell: bool = True
    max_atoms: int = 4096
    max_step: float = 0.2
    dt: float = 0.1
    dt_max: float = 1.0
    grow: float = 1.1
    shrink: float = 0.5
    mix: float = 0.1
    mix_decay: float = 0.99
    patience: int = 5  # steps downhill before the time step grows

    def __post_init__(self) -> None:
        if not (self.fmax > 0 and self.max_steps >= 0 and self.max_atoms > 0):
            values = f"fmax {self.fmax}, max_steps {self.max_steps}, max_atoms {self.max_atoms}"
            raise InputError(f"relaxation needs fmax > 0, max_steps >= 0 and max_atoms > 0, not {values}")

    def run(
        self, potential: Potential, crystals: CrystalBatch | Sequence[CrystalBatch]
    ) -> Iterator[tuple[int, Relaxed]]:
        """Yield (place in the input, result) of each crystal as soon as it is done, quick ones first.

        A crystal whose energy or forces are not finite ends there, not converged. The outcome does not depend
        on the company: time step, mixing and stopping are each crystal's own.
        """
        given = crystals.split() if isinstance(crystals, CrystalBatch) else list(crystals)
        waiting = deque(self._start(place, one) for place, one in enumerate(given))
        live: CrystalBatch | None = None
        while live is not None or waiting:
            live = self._refill(live, waiting)
            energy, force, pull = self._evaluate(potential, live)
            size = _largest(live, force, pull)
            steps = live.labels["steps"]
            finite = (size + energy).isfinite()
            converged = finite & (size <= self.fmax)
            done = converged | (steps >= self.max_steps) | ~finite
            for k in done.nonzero().flatten().tolist():
                place = int(live.labels["place"][k])
                end = live[k]
                final = given[place].replace(frac=end.frac, lattice=end.lattice)
                yield (
                    place,
                    Relaxed(final, float(energy[k]), float(size[k]), int(steps[k]), bool(converged[k])),
                )
            stay = ~done
            atoms = stay[live.index]
            live = (
                self._step(live[stay.nonzero().flatten()], force[atoms], pull[stay]) if stay.any() else None
            )

    def _start(self, place: int, crystal: CrystalBatch) -> CrystalBatch:
        """The crystal at rest; the state of the optimiser travels with it as labels."""
        if len(crystal) != 1:
            raise InputError(
                f"item {place} is a batch of {len(crystal)} crystals: hand over one batch, or singles"
            )
        one = crystal.lattice.new_ones(1)
        count = torch.ones(1, dtype=torch.long, device=crystal.device)
        labels = {
            "place": place * count,
            "steps": 0 * count,
            "streak": -count,  # -1: has not moved yet
            "dt": self.dt * one,
            "mix": self.mix * one,
            "cell velocity": torch.zeros_like(crystal.lattice),
            "pbc": crystal.pbc,
        }
        velocity = {"velocity": torch.zeros_like(crystal.frac)}
        return crystal.replace(labels=labels, site_labels=velocity)

    def _refill(self, live: CrystalBatch | None, waiting: deque[CrystalBatch]) -> CrystalBatch:
        parts = [] if live is None else [live]
        atoms = 0 if live is None else len(live.numbers)
        while waiting and (not parts or atoms + len(waiting[0].numbers) <= self.max_atoms):
            parts.append(waiting.popleft())
            atoms += len(parts[-1].numbers)
        return CrystalBatch.cat(parts)

    def _evaluate(self, potential: Potential, x: CrystalBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Energy (b,), forces (n, 3) and the force on Q (b, 3, 3), in the crystals' dtype."""
        bulk = x.pbc.all(dim=1)
        seen = x.replace(labels={} if bulk.all() else {"pbc": x.pbc}, site_labels={})
        out = potential(seen)
        energy, force = out["energy"].detach().to(x.lattice), out["forces"].detach().to(x.frac)
        if not self.cell:
            return energy, force, torch.zeros_like(x.lattice)
        pull = -x.volume[:, None, None] * out["stress"].detach().to(x.lattice) / x.num_atoms[:, None, None]
        return energy, force, torch.where(bulk[:, None, None], pull, torch.zeros_like(pull))

    def _step(self, x: CrystalBatch, force: Tensor, pull: Tensor) -> CrystalBatch:
        v, w = x.site_labels["velocity"], x.labels["cell velocity"]
        dt, mix, streak = x.labels["dt"], x.labels["mix"], x.labels["streak"]
        new = streak < 0
        downhill = ~new & (_dot(x, force, v, pull, w) > 0)
        uphill = ~new & ~downhill
        turn = mix * (_dot(x, v, v, w, w) / _dot(x, force, force, pull, pull)).sqrt()
        keep = torch.where(downhill, 1 - mix, torch.zeros_like(mix))
        turn = torch.where(downhill, turn, torch.zeros_like(turn))
        faster = downhill & (streak > self.patience)
        dt = torch.where(
            faster, (dt * self.grow).clamp(max=self.dt_max), torch.where(uphill, dt * self.shrink, dt)
        )
        mix = torch.where(
            faster, mix * self.mix_decay, torch.where(uphill, torch.full_like(mix, self.mix), mix)
        )
        streak = torch.where(downhill, streak + 1, torch.zeros_like(streak))

        v = (keep[x.index])[:, None] * v + (turn + dt)[x.index][:, None] * force
        w = keep[:, None, None] * w + (turn + dt)[:, None, None] * pull
        length = dt * _dot(x, v, v, w, w).sqrt()
        pace = dt * (self.max_step / length).clamp(max=1.0)
        labels = {
            **x.labels,
            "dt": dt,
            "mix": mix,
            "streak": streak,
            "cell velocity": w,
            "steps": x.labels["steps"] + 1,
        }
        moved = _move(x, pace[x.index][:, None] * v, pace[:, None, None] * w)
        return moved.replace(labels=labels, site_labels={"velocity": v})


def relax_batch(
    potential: Potential, crystals: CrystalBatch | Sequence[CrystalBatch], fire: BatchedFire | None = None
) -> list[Relaxed]:
    """Relax all crystals and return them in the order of the input; see BatchedFire."""
    found = dict((fire or BatchedFire()).run(potential, crystals))
    return [found[place] for place in range(len(found))]


def _move(x: CrystalBatch, dx: Tensor, dq: Tensor) -> CrystalBatch:
    """Atoms by dx within the cell, then atoms and cell together by exp(dq / N)."""
    frac = x.frac + torch.einsum("ni,nij->nj", dx, torch.linalg.inv(x.lattice)[x.index])
    strain = 0.5 * (dq + dq.transpose(-1, -2)) / x.num_atoms[:, None, None]
    frac = torch.where(x.pbc[x.index], wrap(frac), frac)
    return x.replace(frac=frac, lattice=x.lattice @ torch.linalg.matrix_exp(strain))


def _dot(x: CrystalBatch, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """(b,) scalar products over all coordinates of each crystal: atoms (n, 3) and cell (b, 3, 3)."""
    return (c * d).sum(dim=(1, 2)).index_add(0, x.index, (a * b).sum(dim=1))


def _largest(x: CrystalBatch, force: Tensor, pull: Tensor) -> Tensor:
    """(b,) the longest force on an atom or row of the cell's force; NaN where there is one."""
    rows = pull.norm(dim=-1).amax(dim=1)
    return rows.scatter_reduce(0, x.index, force.norm(dim=-1), "amax", include_self=True)
