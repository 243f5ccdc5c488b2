"""Gather crystals into prototypes: same group, same coloured orbits, and close in every length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystalml.prototypes.align import Closeness, Coloured, Placement, cell_gap, place
from crystalml.prototypes.describe import Description
from crystalml.prototypes.elements import electronegativity
from crystalml.prototypes.symmetry import snap, space_group, symmetric_cell

Array = NDArray[Any]

TIE = 0.03  # recolourings that fit this well alike are one: the two sites of rock salt, say


class Member(NamedTuple):
    """One crystal: elements of colours 0, 1, ..., cubic Angstrom per atom, and its weight as evidence."""

    elements: tuple[int, ...]
    volume: float
    weight: float = 1.0


@dataclass
class Prototype:
    """A leader and its members, each laid on it."""

    leader: Coloured
    members: list[Member] = field(default_factory=list)
    placements: list[Placement] = field(default_factory=list)

    def add(self, member: Member, placement: Placement) -> None:
        self.members.append(member)
        self.placements.append(placement)

    def mean(self) -> tuple[Array, Array]:
        """(6,) cell at unit volume per atom and (o, 3) sites: means over members, exact in the group."""
        cell, moved = self._mean(range(len(self.members)))
        return cell, (self._sites + moved) % 1.0

    def departures(self) -> dict[tuple[int, ...], tuple[Array, Array]]:
        """Elements -> how far their members are from the mean: (6,) log of the cell, (o, 3) sites."""
        cell, moved = self._mean(range(len(self.members)))
        who: dict[tuple[int, ...], list[int]] = {}
        for position, member in enumerate(self.members):
            who.setdefault(member.elements, []).append(position)
        found = {elements: self._mean(positions) for elements, positions in who.items()}
        return {elements: (np.log(c / cell), m - moved) for elements, (c, m) in found.items()}

    @cached_property
    def _sites(self) -> Array:
        """(o, 3) the leader's, exact in the group."""
        crystal = self.leader.crystal
        return np.stack([snap(crystal.hall, site) for site in crystal.sites])

    def _mean(self, positions: Sequence[int]) -> tuple[Array, Array]:
        """Cell and displacements of the leader's sites, averaged over some members, exact in the group."""
        hall, chosen = self.leader.crystal.hall, [self.placements[i] for i in positions]
        shifts = np.mean([placement.shifts for placement in chosen], 0)
        logs = np.mean([np.log(placement.cell) for placement in chosen], 0)
        moved = [snap_shift(hall, site, shift) for site, shift in zip(self._sites, shifts, strict=True)]
        return symmetric_cell(space_group(hall)[0], np.exp(logs)), np.stack(moved)


def snap_shift(hall: int, site: Array, shift: Array) -> Array:
    """The part of a displacement that the site's symmetry leaves free: its mean over the stabiliser."""
    step = 1e-4 / max(float(np.abs(shift).max()), 1e-12)  # small, so that the stabiliser is the site's own
    if step >= 1:
        return snap(hall, site + shift) - site
    return (snap(hall, site + step * shift) - site) / step


class Clusters:
    """Prototypes found so far; `add` puts one crystal where it belongs or makes it a leader."""

    def __init__(self, close: Closeness | None = None) -> None:
        self.close = close or Closeness()
        self.groups: dict[Any, list[Prototype]] = {}
        self._cells: dict[Any, Array] = {}

    def prototypes(self) -> list[Prototype]:
        """In an order that does not depend on where the crystals came from: by signature, group, members."""
        keys = sorted(self.groups, key=lambda key: (key[1], key[0]))
        return [p for key in keys for p in sorted(self.groups[key], key=lambda p: -len(p.members))]

    def add(self, crystal: Description, weight: float = 1.0) -> None:
        coloured = Coloured.of(crystal)
        group = self.groups.setdefault(coloured.key, [])
        if group:
            lengths, angles = cell_gap(coloured.settings[1][:, None], self._cells[coloured.key])
            near = (lengths <= self.close.length) & (angles <= self.close.angle)
            order = np.argsort(np.where(near, lengths, np.inf).min(0), kind="stable")
            for position in order[: int(near.any(0).sum())]:
                if self._join(group[position], coloured, weight):
                    return
        fresh = Prototype(Coloured.of(crystal))  # a copy without the tables that `settings` keeps
        group.append(fresh)
        cells = self._cells.get(coloured.key, np.zeros((0, 6)))
        self._cells[coloured.key] = np.concatenate([cells, crystal.cell[None]])
        self._join(fresh, coloured, weight)

    def _join(self, prototype: Prototype, crystal: Coloured, weight: float) -> bool:
        found = []
        for colouring in crystal.recolourings():
            placement = place(prototype.leader, crystal, colouring, self.close)
            if placement is not None:
                found.append((colouring, placement))
        if not found:
            return False
        limit = min(placement.worst for _, placement in found) + TIE
        options = []
        for colouring, placement in found:
            if placement.worst <= limit:
                elements = [0] * len(colouring)
                for k, colour in enumerate(colouring):
                    elements[colour] = crystal.elements[k]
                options.append((tuple(elements), placement))
        elements_, placement = min(options, key=lambda option: [(electronegativity(z), z) for z in option[0]])
        prototype.add(Member(elements_, crystal.crystal.volume, weight), placement)
        return True
