"""Lay one crystal on another of the same space group: a change of setting, an origin, colours to colours.

Colours are species without names: crystals of one prototype have the same coloured orbits. Two of them
coincide after x -> P x + p, with P from the normaliser of the group and p taking one atom onto another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalml.prototypes.describe import Description
from crystalml.prototypes.elements import electronegativity
from crystalml.prototypes.symmetry import (
    centring,
    metric,
    normaliser,
    operations,
    orbit,
    polar,
    vectors,
    wrapped,
)

Array = NDArray[Any]


@dataclass(frozen=True)
class Closeness:
    """How far crystals of one prototype may differ.

    length: relative difference of cell vectors (at equal volume per atom). angle: degrees.
    shift: displacement of any atom over the cube root of the volume per atom.
    """

    length: float = 0.06
    angle: float = 4.0
    shift: float = 0.12


@dataclass(frozen=True)
class Placement:
    """A crystal in the frame of another: (o, 3) displacements of the other's sites, its cell, worst shift."""

    shifts: Array
    cell: Array
    worst: float


Signature = tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Coloured:
    """A description whose species are colours 0, 1, ...: `elements[k]` is the atomic number of colour k.

    Colours are sorted by their signature (atoms in the primitive cell, multiplicities of their orbits), then
    by electronegativity.
    """

    crystal: Description
    colours: Array
    elements: tuple[int, ...]
    signature: Signature

    @staticmethod
    def of(crystal: Description) -> Coloured:
        found = {}
        for z in np.unique(crystal.species):
            sizes = crystal.multiplicity[crystal.species == z]
            found[int(z)] = (int(sizes.sum()), tuple(sorted(sizes.tolist())))
        elements = tuple(sorted(found, key=lambda z: (found[z], electronegativity(z), z)))
        colours = np.array([elements.index(z) for z in crystal.species.tolist()])
        return Coloured(crystal, colours, elements, tuple(found[z] for z in elements))

    @property
    def key(self) -> tuple[int, Signature]:
        """What members of one prototype share before any geometry is looked at."""
        return self.crystal.hall, self.signature

    def recolourings(self) -> Iterator[tuple[int, ...]]:
        """Permutations of the colours among those with the same signature, the identity first."""
        return regroupings(self.signature)

    @cached_property
    def settings(self) -> tuple[Array, Array]:
        """All (k, 3, 3) changes of basis P and the (k, 6) cells they lead to; G' = P^-T G P^-1."""
        changes = normaliser(self.crystal.hall)
        inverse = np.linalg.inv(changes)
        gram = np.swapaxes(inverse, 1, 2) @ metric(self.crystal.cell) @ inverse
        lengths = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
        cosines = [gram[:, i, j] / lengths[:, i] / lengths[:, j] for i, j in ((1, 2), (0, 2), (0, 1))]
        angles = np.degrees(np.arccos(np.clip(np.stack(cosines, 1), -1, 1)))
        return changes, np.concatenate([lengths, angles], 1)

    @cached_property
    def atoms(self) -> tuple[Array, Array, Array]:
        """Of all atoms in the conventional cell: (m, 3) positions, (m,) orbits, (m, 3, 3) rotations."""
        hall = self.crystal.hall
        rotations, _ = operations(hall)
        parts = [orbit(hall, site) for site in self.crystal.sites]
        owner = np.repeat(np.arange(len(parts)), [len(points) for points, _ in parts])
        return np.concatenate([p for p, _ in parts]), owner, rotations[np.concatenate([o for _, o in parts])]


def regroupings(labels: tuple[Any, ...]) -> Iterator[tuple[int, ...]]:
    """All permutations of positions that leave `labels` in place, the identity first."""
    groups: dict[Any, list[int]] = {}
    for position, label in enumerate(labels):
        groups.setdefault(label, []).append(position)
    for choice in product(*(permutations(group) for group in groups.values())):
        out = [0] * len(labels)
        for group, image in zip(groups.values(), choice, strict=True):
            for position, target in zip(group, image, strict=True):
                out[position] = target
        yield tuple(out)


def cell_gap(cells: Array, others: Array) -> tuple[Array, Array]:
    """Greatest relative difference of lengths and greatest difference of angles, broadcast over (..., 6)."""
    lengths = np.abs(np.log(cells[..., :3] / others[..., :3])).max(-1)
    return lengths, np.abs(cells[..., 3:] - others[..., 3:]).max(-1)


def place(fixed: Coloured, moved: Coloured, colouring: tuple[int, ...], close: Closeness) -> Placement | None:
    """Lay `moved` on `fixed` with its colour k on colour colouring[k]; None if it is not close anywhere."""
    changes, cells = moved.settings
    lengths, angles = cell_gap(cells, fixed.crystal.cell)
    fits = np.flatnonzero((lengths <= close.length) & (angles <= close.angle))
    if not len(fits):
        return None
    target = np.array(colouring)[moved.colours]
    order = _rarest_first(target, moved.crystal.multiplicity)
    basis = vectors(fixed.crystal.cell)
    choice, origin = _anchors(fixed, moved, changes[fits], target, int(order[0]))
    hits: list[Array] = []
    gaps: list[Array] = []
    for j in order:  # the rarest orbits rule out most settings before the others are looked at
        candidates = _class(fixed, int(target[j]), int(moved.crystal.multiplicity[j]))
        position = changes[fits][choice] @ moved.crystal.sites[j] + origin
        difference = wrapped(position[:, None] - fixed.atoms[0][candidates])
        distance = np.linalg.norm(difference @ basis, axis=-1)
        nearest = distance.argmin(1)
        rows = np.arange(len(choice))
        ok = distance[rows, nearest] <= close.shift
        if not ok.any():
            return None
        choice, origin = choice[ok], origin[ok]
        hits = [h[ok] for h in hits] + [candidates[nearest][ok]]
        gaps = [g[ok] for g in gaps] + [difference[rows, nearest][ok]]
    return _best(fixed, moved, order, np.stack(hits, 1), np.stack(gaps, 1), cells[fits][choice], basis)


def _rarest_first(colours: Array, multiplicity: Array) -> Array:
    size = [int((multiplicity * ((colours == c) & (multiplicity == m))).sum())
            for c, m in zip(colours, multiplicity, strict=True)]  # fmt: skip
    return np.argsort(size, kind="stable")


def _class(fixed: Coloured, colour: int, multiplicity: int) -> Array:
    """Atoms of `fixed` with this colour on orbits of this multiplicity."""
    orbits = (fixed.colours == colour) & (fixed.crystal.multiplicity == multiplicity)
    return np.flatnonzero(orbits[fixed.atoms[1]])


def _anchors(
    fixed: Coloured, moved: Coloured, changes: Array, target: Array, anchor: int
) -> tuple[Array, Array]:
    """Every (setting, origin shift) that takes the anchor site onto an atom of its class."""
    atoms = fixed.atoms[0][_class(fixed, int(target[anchor]), int(moved.crystal.multiplicity[anchor]))]
    apart = np.ones(len(atoms), bool)
    for vector in centring(fixed.crystal.hall)[1:]:  # a centring translation changes nothing
        same = np.abs(wrapped(atoms[:, None] - atoms - vector)).max(2) < 1e-4
        apart &= ~np.tril(same).any(1)
    atoms = atoms[apart]
    start = changes @ moved.crystal.sites[anchor]
    choice = np.repeat(np.arange(len(changes)), len(atoms))
    return choice, (atoms[None] - start[:, None]).reshape(-1, 3)


def _best(
    fixed: Coloured, moved: Coloured, order: Array, hits: Array, gaps: Array, cells: Array, basis: Array
) -> Placement | None:
    """The placement with the smallest mean square shift that takes orbits to orbits one to one."""
    weight = moved.crystal.multiplicity[order] / moved.crystal.num_atoms
    drift = np.einsum("j,kji->ki", weight, gaps) @ polar(fixed.crystal.hall)
    gaps = gaps - drift[:, None]
    distance = np.linalg.norm(gaps @ basis, axis=-1)
    orbits = fixed.atoms[1][hits]
    one_to_one = (np.sort(orbits, 1) == np.arange(len(fixed.crystal.species))).all(1)
    if not one_to_one.any():
        return None
    best = int(np.argmin(np.where(one_to_one, (distance**2 * weight).sum(1), np.inf)))
    back = np.linalg.inv(fixed.atoms[2][hits[best]])
    shifts = np.empty_like(gaps[best])
    shifts[orbits[best]] = np.einsum("jab,jb->ja", back, gaps[best])
    return Placement(shifts, cells[best], float(distance[best].max()))
