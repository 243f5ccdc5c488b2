"""Ways to place a cell's atoms on the orbits of a space group, from the orbits that known crystals use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crystalml.errors import InputError
from crystalml.prototypes.atlas import PrototypeAtlas
from crystalml.prototypes.instantiate import primitive_vectors
from crystalml.prototypes.symmetry import operations, space_group, vectors, wrapped
from crystalml.sample.symmetric import Orbits

Array = NDArray[Any]

TRIES = 500
ENOUGH = 400  # crystals of a group to count sites in


@dataclass(frozen=True)
class Site:
    """A Wyckoff position: one point of it in the conventional cell, atoms in the primitive cell, how often
    crystals use it, and whether it has no free coordinate, so that it holds one orbit at most.
    """

    letter: str
    point: tuple[float, float, float]
    multiplicity: int
    popularity: int
    fixed: bool


@dataclass(frozen=True)
class Group:
    """A space group in one setting: its sites, and the cell of some crystal that has it."""

    hall: int
    sites: tuple[Site, ...]
    cell: tuple[float, ...]


def group_of(atlas: PrototypeAtlas, number: int) -> Group:
    """What the atlas knows of the space group `number`, in the setting it has most crystals in."""
    if not 1 <= number <= 230:
        raise InputError(f"space groups are numbered 1 to 230, not {number!r}")
    halls = {int(h) for h in np.unique(atlas.tables.hall) if space_group(int(h))[0] == number}
    if not halls:
        raise InputError(f"the atlas has no crystal with space group {number}; use another atlas or no group")
    hall = max(halls, key=lambda h: (int((atlas.tables.hall == h).sum()), -h))
    found: dict[str, Site] = {}
    members = np.flatnonzero(atlas.tables.hall == hall)
    members = members[:: 1 + len(members) // ENOUGH].tolist()
    for p in members:
        shape = atlas.tables.geometry(p)
        for letter, point, count in zip(shape.letters, shape.sites, shape.multiplicity.tolist(), strict=True):
            before = found.get(letter)
            if before is None:
                spot = (float(point[0]), float(point[1]), float(point[2]))
                found[letter] = Site(letter, spot, count, 1, not _freedom(hall, point).any())
            elif before.multiplicity == count:
                found[letter] = Site(letter, before.point, count, before.popularity + 1, before.fixed)
    sites = tuple(found[letter] for letter in sorted(found))
    return Group(hall, sites, tuple(atlas.tables.geometry(members[0]).cell.tolist()))


def place(group: Group, numbers: Sequence[int], seed: int) -> tuple[list[Site], list[int]]:
    """Sites and their elements for the atoms of a primitive cell, drawn by popularity.

    Where TRIES draws use up no more than a part of the atoms, the first way that a search finds. Raises
    InputError if there is none.
    """
    generator = np.random.default_rng(seed)
    amounts = {z: list(numbers).count(z) for z in sorted(set(numbers))}
    order = sorted(amounts, key=lambda z: amounts[z])
    for _ in range(TRIES):
        left, chosen, elements = list(group.sites), [], []
        for z in order:
            rest = amounts[z]
            while rest and (fits := [site for site in left if site.multiplicity <= rest]):
                weight = np.array([site.popularity for site in fits], float)
                site = fits[int(generator.choice(len(fits), p=weight / weight.sum()))]
                chosen.append(site)
                elements.append(z)
                rest -= site.multiplicity
                if site.fixed:
                    left.remove(site)
            if rest:
                break
        else:
            return chosen, elements
    if found := _fill(group, tuple(amounts[z] for z in order)):
        pairs = [(site, z) for z, sites in zip(order, found, strict=True) for site in sites]
        return [site for site, _ in pairs], [z for _, z in pairs]
    number, name = space_group(group.hall)
    raise InputError(
        f"found no way to place {amounts} (atomic number: atoms) on the sites of {name} ({number}), whose "
        f"primitive cell takes {sorted({site.multiplicity for site in group.sites})} atoms at a time; try "
        "other formula units, or another group"
    )


def can_place(group: Group, numbers: Sequence[int]) -> bool:
    """Whether the space group has sites for the atoms of a primitive cell."""
    return _fill(group, tuple(sorted(list(numbers).count(z) for z in set(numbers)))) is not None


@cache
def _fill(group: Group, amounts: tuple[int, ...]) -> list[list[Site]] | None:
    """Sites of every element, which have as many atoms each; None where no choice of sites has.

    A search of all choices: sites without a free coordinate, the popular ones first, serve once.
    """
    single = sorted((s for s in group.sites if s.fixed), key=lambda s: -s.popularity)
    free = {s.multiplicity: s for s in sorted(group.sites, key=lambda s: s.popularity) if not s.fixed}
    dead: set[tuple[int, int, frozenset[str]]] = set()

    def search(k: int, rest: int, used: frozenset[str]) -> list[list[Site]] | None:
        """Sites for what is left: rest atoms of element k, and all of those after it."""
        if rest == 0:
            if k + 1 == len(amounts):
                return [[] for _ in amounts]
            return search(k + 1, amounts[k + 1], used)
        if (k, rest, used) in dead:
            return None
        once = [s for s in single if s.letter not in used]
        for site in [*once, *free.values()]:
            if site.multiplicity <= rest:
                taken = used | {site.letter} if site.fixed else used
                found = search(k, rest - site.multiplicity, taken)
                if found is not None:
                    found[k].append(site)
                    return found
        dead.add((k, rest, used))
        return None

    return search(0, amounts[0], frozenset())


def orbits(group: Group, sites: Sequence[Site], elements: Sequence[int]) -> tuple[Orbits, list[int]]:
    """The symmetry of the primitive cell with those sites occupied, and the atomic number of every atom."""
    rotations, shifts = _primitive_operations(group.hall)
    back = np.linalg.inv(primitive_vectors(group.hall))
    origin, first, turns = [], [], []
    numbers: list[int] = []
    for site, z in zip(sites, elements, strict=True):
        start = np.array(site.point) @ back
        images = np.einsum("gij,j->gi", rotations, start) + shifts
        stays = np.abs(wrapped(images - start)).max(1) < 2e-3
        free = rotations[stays].mean(0).T
        kept = [0]
        for g in range(1, len(images)):
            if np.abs(wrapped(images[kept] - images[g])).max(1).min() >= 2e-3:
                kept.append(g)
        first += [len(numbers)] * len(kept)
        numbers += [z] * len(kept)
        origin.append(images[kept])
        turns.append(free @ rotations[kept].transpose(0, 2, 1))
    cell = primitive_vectors(group.hall) @ vectors(np.array(group.cell))
    lattices = _lattices(group.hall, cell)
    arrays = (np.concatenate(origin), np.array(first), np.concatenate(turns), lattices, rotations)
    return Orbits(*(torch.from_numpy(a) for a in arrays)), numbers


def _freedom(hall: int, point: Array) -> Array:
    """(3, 3) projector on the displacements that keep the site's symmetry."""
    rotations, shifts = operations(hall)
    gap = rotations @ point + shifts - point
    stays = np.abs(wrapped(gap)).max(1) < 2e-3
    free: Array = rotations[stays].mean(0)
    return free


@cache
def _primitive_operations(hall: int) -> tuple[Array, Array]:
    """Operations on coordinates of the primitive cell, x' = R x + t, the identity first."""
    rotations, shifts = operations(hall)
    basis = primitive_vectors(hall)
    back = np.linalg.inv(basis)
    found = back.T @ rotations @ basis.T
    whole = np.rint(found)
    _, keep = np.unique(whole.reshape(-1, 9), axis=0, return_index=True)
    identity = int(np.flatnonzero((whole == np.eye(3)).all((1, 2)))[0])
    order = [identity, *[k for k in sorted(keep.tolist()) if not (whole[k] == np.eye(3)).all()]]
    return whole[order], shifts[order] @ back


def _lattices(hall: int, cell: Array) -> Array:
    """(9, 9) orthogonal projector on the lattices L with R^T L = L Q, Q = L_0^-1 R^T L_0 for L_0 = cell."""
    rotations, _ = _primitive_operations(hall)
    turned = np.linalg.inv(cell) @ rotations.transpose(0, 2, 1) @ cell
    average = np.mean(
        [np.kron(np.linalg.inv(r.T), q.T) for r, q in zip(rotations, turned, strict=True)], axis=0
    )
    u, s, _ = np.linalg.svd(average)
    basis = u[:, s > 0.5]
    projector: Array = basis @ basis.T
    return projector
