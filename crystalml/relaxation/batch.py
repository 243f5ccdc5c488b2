"""The loop: evaluate all, let each crystal take its step, swap finished ones for waiting ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.errors import CrystalMLError, InputError, NonFiniteError, UnsupportedError
from crystalml.relaxation.coordinates import Vector, begin, longest, moved, physical, pulled_back
from crystalml.relaxation.fire import Fire
from crystalml.relaxation.lbfgs import Lbfgs
from crystalml.relaxation.settings import RelaxSettings
from crystalml.relaxation.symmetry import Averages, Operations, symmetrized

Potential = Callable[[CrystalBatch], Mapping[str, Tensor]]
"""A batch -> "energy" (b,) in eV, "forces" (n, 3) in eV/A, "stress" (b, 3, 3) in eV/A^3: as Predictor.

What it says besides of each crystal, (b,), comes back in `Relaxed.extra` where named in EXTRA.
"""
NEEDED, EXTRA = ("energy", "forces", "stress"), ("energy_uncertainty",)

FREE = "free"  # the site label of what may move
_OPTIMIZERS = {"lbfgs": Lbfgs, "fire": Fire}


class Optimizer(Protocol):
    """Its state travels with the crystals as labels, so that they can leave and join at any step."""

    def rest(self, x: CrystalBatch) -> CrystalBatch: ...
    def step(self, x: CrystalBatch, energy: Tensor, force: Vector) -> tuple[CrystalBatch, Vector]: ...


class Frame(NamedTuple):
    """A crystal on its way: energy in eV a cell, fmax in eV/A."""

    crystal: CrystalBatch
    energy: float
    fmax: float


@dataclass(frozen=True)
class Relaxed:
    """Where a crystal ended: its labels are those it came with. error: why it could not go on."""

    crystal: CrystalBatch  # of one
    energy: float  # eV a cell
    fmax: float  # eV/A, cell included
    steps: int
    converged: bool
    error: Exception | None = None
    frames: list[Frame] = field(default_factory=list)  # with settings.trajectory, the start first
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchRelaxer:
    """Relaxes each crystal on its own clock; the batch only shares the evaluations.

    cost: (b,) what a crystal takes of `room`; together they bound what is evaluated at once. A crystal that
    costs more comes alone. optimizer: instead of the one that the settings name.
    """

    potential: Potential
    settings: RelaxSettings = field(default_factory=RelaxSettings)
    cost: Callable[[CrystalBatch], Tensor] = lambda x: x.num_atoms
    room: float = 4096
    optimizer: Optimizer | None = None

    def run(self, crystals: CrystalBatch | Iterable[CrystalBatch]) -> Iterator[tuple[int, Relaxed]]:
        """Yield (place in the input, result) of each crystal as soon as it is done, quick ones first.

        Crystals are taken from the iterable when there is room. The site label "free", (n, 3) bool, names
        the Cartesian directions that forces may act in. A crystal whose energy or forces cannot be had, or
        are not finite, ends there, with the reason. The outcome does not depend on the company.
        """
        queue = _Queue(crystals.split() if isinstance(crystals, CrystalBatch) else crystals)
        run = _Run(self, self.optimizer or _OPTIMIZERS[self.settings.optimizer]())
        live: CrystalBatch | None = None
        while live is not None or queue.next:
            live = run.admit(live, queue)
            if live is not None:
                live = run.advance(live)
            yield from run.finished
            run.finished.clear()


def relax_batch(
    potential: Potential,
    crystals: CrystalBatch | Sequence[CrystalBatch],
    settings: RelaxSettings | None = None,
) -> list[Relaxed]:
    """Relax all crystals and return them in the order of the input; see BatchRelaxer."""
    found = dict(BatchRelaxer(potential, settings or RelaxSettings()).run(crystals))
    return [found[place] for place in range(len(found))]


class _Queue:
    """Crystals by place, with a look at the next one."""

    def __init__(self, crystals: Iterable[CrystalBatch]) -> None:
        self._rest = enumerate(crystals)
        self.next = next(self._rest, None)

    def pop(self) -> tuple[int, CrystalBatch]:
        assert self.next is not None
        taken, self.next = self.next, next(self._rest, None)
        return taken


class _Run:
    """One run: the loop's turn, and what is known of the live crystals besides the tensors of the batch."""

    def __init__(self, relaxer: BatchRelaxer, optimizer: Optimizer) -> None:
        self.relaxer, self.settings, self.optimizer = relaxer, relaxer.settings, optimizer
        self.finished: list[tuple[int, Relaxed]] = []
        self.given: dict[int, CrystalBatch] = {}
        self.frames: dict[int, list[Frame]] = {}
        self.groups: dict[int, Operations] = {}
        self.errors: dict[int, Exception] = {}
        self.averages: tuple[list[int], Averages] | None = None

    def admit(self, live: CrystalBatch | None, queue: _Queue) -> CrystalBatch | None:
        """The live crystals and as many waiting ones as there is room for, at least one in all."""
        parts = [] if live is None else [live]
        used = float(self.relaxer.cost(live).sum()) if live is not None and queue.next else 0.0
        while queue.next:
            used += float(self.relaxer.cost(queue.next[1]).sum())
            if parts and used > self.relaxer.room:
                break
            place, crystal = queue.pop()
            try:
                parts.append(self.start(place, crystal))
            except (InputError, UnsupportedError) as error:
                self.finished.append((place, Relaxed(crystal, math.nan, math.nan, 0, False, error)))
        return CrystalBatch.cat(parts) if parts else None

    def start(self, place: int, crystal: CrystalBatch) -> CrystalBatch:
        """The crystal at rest, with the state of loop and optimiser in the place of its labels."""
        if len(crystal) != 1:
            raise InputError(
                f"item {place} is a batch of {len(crystal)} crystals: hand over one batch, or singles"
            )
        one = crystal
        if self.settings.fix_symmetry:
            if not crystal.pbc.all() or FREE in crystal.site_labels:
                raise UnsupportedError(
                    "fix_symmetry needs a crystal periodic in three directions without fixed atoms; "
                    "relax this one with fix_symmetry=False"
                )
            one, self.groups[place] = symmetrized(crystal, self.settings.tolerance)
        self.given[place] = crystal
        count = torch.ones_like(one.num_atoms)
        free = crystal.site_labels.get(FREE, torch.ones_like(one.frac))
        one = one.replace(
            labels={"place": place * count, "steps": 0 * count, "pbc": crystal.pbc},
            site_labels={FREE: free.to(one.frac)},
        )
        return self.optimizer.rest(begin(one))

    def advance(self, live: CrystalBatch) -> CrystalBatch | None:
        """Evaluate; let those that are done go and the others take a step."""
        out = self.evaluate(live)
        energy, force = out["energy"].to(live.lattice), self.forces(live, out)
        size = longest(live, force)
        places, steps = live.labels["place"].tolist(), live.labels["steps"].tolist()
        if self.settings.trajectory:
            for one, place, e, f in zip(live.split(), places, energy.tolist(), size.tolist(), strict=True):
                self.frames.setdefault(place, []).append(Frame(self.clean(one, place), e, f))
        finite = (size + energy).isfinite()
        converged = finite & (size <= self.settings.fmax)
        done = converged | (live.labels["steps"] >= self.settings.max_steps) | ~finite
        for k in done.nonzero().flatten().tolist():
            place, values = places[k], (float(energy[k]), float(size[k]), steps[k], bool(converged[k]))
            error = None if finite[k] else self.errors.pop(place, _not_finite(steps[k]))
            final = self.clean(live[k], place)
            extra = {name: float(out[name][k]) for name in EXTRA if name in out}
            self.finished.append((place, Relaxed(final, *values, error, self.frames.pop(place, []), extra)))
            self.given.pop(place), self.groups.pop(place, None)
        if done.all():
            return None
        if done.any():
            stay = ~done
            atoms = stay[live.index]
            live = live[stay.nonzero().flatten()]
            energy, force = energy[stay], Vector(force.atoms[atoms], force.cell[stay])
        pull = pulled_back(live, force)
        free = live.site_labels[FREE]  # once more: where the cell is sheared, directions mix
        live, step = self.optimizer.step(live, energy, Vector(pull.atoms * free, pull.cell))
        return moved(live.replace(labels={**live.labels, "steps": live.labels["steps"] + 1}), step)

    def forces(self, live: CrystalBatch, out: Mapping[str, Tensor]) -> Vector:
        """The forces that may act: on free atoms, symmetrised if symmetry is kept."""
        force = physical(live, out, self.settings.cell)
        force = Vector(force.atoms * live.site_labels[FREE], force.cell)
        if self.settings.fix_symmetry:
            places = live.labels["place"].tolist()
            if self.averages is None or self.averages[0] != places:
                self.averages = (places, Averages(live, [self.groups[place] for place in places]))
            force = self.averages[1](live, force)
        return force

    def evaluate(self, x: CrystalBatch) -> Mapping[str, Tensor]:
        """The potential's word; where it refuses, NaN for the crystals that it refuses, found by halving."""
        seen = x.replace(labels={} if x.pbc.all() else {"pbc": x.pbc}, site_labels={})
        try:
            out = self.relaxer.potential(seen)
            return {name: out[name].detach() for name in (*NEEDED, *EXTRA) if name in out}
        except (CrystalMLError, torch.OutOfMemoryError) as error:
            if len(x) == 1:
                self.errors[int(x.labels["place"])] = error
                nan = {"energy": x.lattice[:, 0, 0], "forces": x.frac, "stress": x.lattice}
                return {name: torch.full_like(value, torch.nan) for name, value in nan.items()}
        half = len(x) // 2
        parts = [self.evaluate(x[which]) for which in (slice(half), slice(half, None))]
        common = set.intersection(*(set(part) for part in parts))
        return {name: torch.cat([part[name].to(x.lattice) for part in parts]) for name in common}

    def clean(self, one: CrystalBatch, place: int) -> CrystalBatch:
        """The crystal as it stands, with the labels that it came with."""
        return self.given[place].replace(frac=one.frac, lattice=one.lattice)


def _not_finite(steps: int) -> NonFiniteError:
    return NonFiniteError(
        f"energy or forces are not finite after {steps} steps: the model has no answer for this geometry; "
        "check the start for overlapping atoms"
    )
