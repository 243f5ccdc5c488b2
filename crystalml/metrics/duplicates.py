"""Uniqueness among samples and novelty against known crystals, by pymatgen's StructureMatcher."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core.structure import Structure

from crystalml.datasets.arrays import Arrays
from crystalml.elements import symbol
from crystalml.metrics.match import MatchTolerances
from crystalml.parallel import process_map, time_limit

SAME = MatchTolerances(ltol=0.2, stol=0.3, angle_tol=5.0)  # pymatgen's defaults, those of S.U.N. (MatterGen)


def equal_groups(
    structures: Sequence[Structure | None],
    processes: int = 1,
    tolerances: MatchTolerances = SAME,
    timeout: float | None = 60.0,
    progress: Callable[[int], None] | None = None,
) -> list[int]:
    """For each sample the place of the first one equal to it, its own place if there is none before it.

    Equal is the transitive closure of StructureMatcher.fit in both directions between samples of one reduced
    formula, so the groups depend neither on the order of samples, nor of atoms, nor on the choice of cell.
    A sample that is None is alone. progress: called with the number of samples done.
    """
    by_formula: dict[str, list[int]] = defaultdict(list)
    for place, structure in enumerate(structures):
        if structure is not None:
            by_formula[structure.composition.reduced_formula].append(place)
    first = list(range(len(structures)))
    # The long tasks first; a sample alone with its formula is no task at all.
    groups = sorted((group for group in by_formula.values() if len(group) > 1), key=len, reverse=True)
    work = [
        _Group([s for i in group if (s := structures[i]) is not None], tolerances, timeout)
        for group in groups
    ]
    done = len(structures) - sum(map(len, groups))
    if progress is not None:
        progress(done)
    for group, labels in zip(groups, process_map(_components, work, processes, chunk=4), strict=True):
        for place, label in zip(group, labels, strict=True):
            first[place] = group[label]
        done += len(group)
        if progress is not None:
            progress(done)
    return first


@dataclass(frozen=True)
class _Group:
    structures: list[Structure]
    tolerances: MatchTolerances
    timeout: float | None


def _components(task: _Group) -> list[int]:
    """Connected components of the graph of matches, each named by its first member."""
    label = list(range(len(task.structures)))
    matcher = task.tolerances.matcher()
    cells = [_reduced(structure) for structure in task.structures]
    for i, one in enumerate(cells):
        for j in range(i):
            if label[i] != label[j] and _same(matcher, one, cells[j], task.timeout):
                old, new = max(label[i], label[j]), min(label[i], label[j])
                label = [new if name == old else name for name in label]
    return label


def _reduced(structure: Structure) -> Structure:
    """Primitive Niggli cell, as the matcher would find it in every single comparison."""
    try:
        return structure.get_reduced_structure("niggli").get_primitive_structure()
    except Exception:  # a needle or sheet breaks it in many ways; the matcher meets it as it is
        return structure


def _same(
    matcher: StructureMatcher, one: Structure, other: Structure, timeout: float | None, both: bool = True
) -> bool:
    if len(one) != len(other):
        return False
    try:
        with time_limit(timeout):
            return bool(matcher.fit(one, other, symmetric=both, skip_structure_reduction=True))
    except Exception:  # out of time, or a cell that no lattice mapping can be found for
        return False


def digest(structure: Structure) -> str:
    """Of the crystal's elements, cell and coordinates, to 1e-6."""
    hashed = hashlib.blake2b(digest_size=12)
    hashed.update(np.array([site.specie.Z for site in structure], np.int16).tobytes())
    for values in (structure.lattice.matrix, structure.frac_coords):
        hashed.update((np.round(values, 6) + 0.0).tobytes())  # + 0.0: there is a negative zero
    return hashed.hexdigest()


class KnownCrystals:
    """Crystals to look samples up in: by reduced formula first, then by the matcher.

    Made from a list of structures or from `datasets` arrays, of which only the crystals whose formula is
    asked for are ever turned into structures: 100,000 take seconds.
    """

    def __init__(self, crystals: Sequence[Structure] | Arrays, names: Sequence[str] | None = None) -> None:
        self._crystals = crystals
        given = crystals.ids if isinstance(crystals, Arrays) and crystals.ids else None
        self.names = list(names or given or map(str, range(len(crystals))))
        self._rows: dict[str, list[int]] = defaultdict(list)
        if isinstance(crystals, Arrays):
            for row, formula in enumerate(_formulas(crystals)):
                self._rows[formula].append(row)
        else:
            for row, structure in enumerate(crystals):
                self._rows[_formula(_amounts(structure))].append(row)

    def __len__(self) -> int:
        return len(self.names)

    def digest(self) -> str:
        """Of names, elements, cells and coordinates: results are of these crystals and of no others."""
        hashed = hashlib.blake2b("\n".join(self.names).encode(), digest_size=8)
        if isinstance(self._crystals, Arrays):
            for values in (self._crystals.numbers, self._crystals.lattice, self._crystals.frac):
                hashed.update(np.ascontiguousarray(values).tobytes())
        else:
            for structure in self._crystals:
                hashed.update(digest(structure).encode())
        return hashed.hexdigest()

    def candidates(self, structure: Structure) -> list[tuple[str, Structure]]:
        """(name, structure) of all known crystals of the same reduced formula."""
        rows = self._rows.get(_formula(_amounts(structure)), [])
        return [(self.names[row], self._structure(row)) for row in rows]

    def _structure(self, row: int) -> Structure:
        if not isinstance(self._crystals, Arrays):
            return self._crystals[row]
        one = self._crystals[[row]]
        species = [symbol(int(z)) for z in one.numbers]
        return Structure(one.lattice[0].astype(float), species, one.frac.astype(float))

    def find(
        self,
        structures: Sequence[Structure | None],
        processes: int = 1,
        tolerances: MatchTolerances = SAME,
        timeout: float | None = 60.0,
        progress: Callable[[int], None] | None = None,
    ) -> list[str | None]:
        """Per sample the name of the first known crystal that matches it, None for a novel one (or None)."""
        found: list[str | None] = [None] * len(structures)
        work, places = [], []
        for place, structure in enumerate(structures):
            if structure is not None and (rivals := self.candidates(structure)):
                work.append(_Lookup(structure, rivals, tolerances, timeout))
                places.append(place)
        done = len(structures) - len(work)
        for place, name in zip(places, process_map(_look_up, work, processes), strict=True):
            found[place] = name
            done += 1
            if progress is not None:
                progress(done)
        return found


@dataclass(frozen=True)
class _Lookup:
    structure: Structure
    rivals: list[tuple[str, Structure]]
    tolerances: MatchTolerances
    timeout: float | None


def _look_up(task: _Lookup) -> str | None:
    matcher = task.tolerances.matcher()
    cell = _reduced(task.structure)
    for name, rival in task.rivals:
        if _same(matcher, cell, _reduced(rival), task.timeout, both=False):
            return name
    return None


def _amounts(structure: Structure) -> dict[int, int]:
    numbers, counts = np.unique([site.specie.Z for site in structure], return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


def _formulas(data: Arrays) -> list[str]:
    parts = np.split(data.numbers.astype(np.int64), np.cumsum(data.num_atoms)[:-1])
    counted = (np.unique(part, return_counts=True) for part in parts)
    return [_formula(dict(zip(z.tolist(), n.tolist(), strict=True))) for z, n in counted]


def _formula(amounts: Mapping[int, int]) -> str:
    """The reduced formula as a key: "11:1 17:1" for NaCl; quicker than pymatgen's by far."""
    divisor = gcd(*amounts.values())
    return " ".join(f"{z}:{amounts[z] // divisor}" for z in sorted(amounts))
