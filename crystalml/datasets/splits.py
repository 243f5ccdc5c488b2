"""Fair splits: candidates that are a test crystal in disguise are dropped; what is left is cut by a seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core.structure import Structure

from crystalml.errors import InputError
from crystalml.parallel import process_map, time_limit

Named = tuple[str, Structure]


@dataclass(frozen=True)
class Tolerances:
    """Tolerances of pymatgen's StructureMatcher; the defaults are those of DAO's Algorithm 2."""

    ltol: float = 0.3
    stol: float = 0.1
    angle_tol: float = 10.0

    def matcher(self) -> StructureMatcher:
        return StructureMatcher(ltol=self.ltol, stol=self.stol, angle_tol=self.angle_tol)


DAO_DUPLICATE = Tolerances()


@dataclass(frozen=True)
class Deduplication:
    """kept: positions of the candidates that stay. removed: candidate id -> id of the test it repeats.

    unsure: ids of candidates whose comparison ran out of time; they are removed, too.
    """

    kept: list[int]
    removed: dict[str, str]
    unsure: list[str]


def deduplicate(
    candidates: Sequence[Named],
    tests: Sequence[Named],
    tolerances: Tolerances = DAO_DUPLICATE,
    processes: int = 1,
    timeout: float | None = 60.0,
) -> Deduplication:
    """DAO's Algorithm 2: drop a candidate whose id is a test id, or that matches a test crystal.

    A match is the same reduced formula and StructureMatcher(stol=0.1, angle_tol=10, ltol=0.3).fit; the
    matcher reduces both to primitive cells, so supercells and other settings are found as well.
    """
    if processes < 1:
        raise InputError(f"processes must be at least 1, not {processes}")
    test_ids = {name for name, _ in tests}
    by_formula: dict[str, list[Named]] = defaultdict(list)
    for name, structure in tests:
        by_formula[structure.composition.reduced_formula].append((name, structure))

    removed = {name: name for name, _ in candidates if name in test_ids}
    work = [
        _Comparison(position, structure, rivals, tolerances, timeout)
        for position, (name, structure) in enumerate(candidates)
        if name not in test_ids and (rivals := by_formula.get(structure.composition.reduced_formula))
    ]
    unsure = []
    for task, (rival, late) in zip(work, process_map(_compare, work, processes), strict=True):
        name = candidates[task.position][0]
        if rival is not None:
            removed[name] = rival
        elif late:
            unsure.append(name)
    gone = {*removed, *unsure}
    kept = [position for position, (name, _) in enumerate(candidates) if name not in gone]
    return Deduplication(kept, removed, unsure)


@dataclass(frozen=True)
class _Comparison:
    position: int
    structure: Structure
    rivals: list[Named]
    tolerances: Tolerances
    timeout: float | None


def _compare(task: _Comparison) -> tuple[str | None, bool]:
    """(id of the first test crystal that matches, whether any comparison ran out of time)."""
    matcher, late = task.tolerances.matcher(), False
    for name, rival in task.rivals:
        try:
            with time_limit(task.timeout):
                if matcher.fit(task.structure, rival):
                    return name, late
        except TimeoutError:
            late = True
    return None, late


def random_split(count: int, shares: Mapping[str, float], seed: int) -> dict[str, NDArray[np.int64]]:
    """Positions 0 .. count-1 cut at random, a function of the seed alone.

    shares: name -> fraction, summing to 1 at most. Sizes are rounded cumulatively, so that shares that
    sum to 1 leave nothing over; each part is sorted.
    """
    values = np.array(list(shares.values()), np.float64)
    if count < 0 or not len(values) or (values < 0).any() or values.sum() > 1 + 1e-9:
        raise InputError(f"cannot cut {count} into {dict(shares)}; shares are >= 0 and sum to 1 at most")
    order = np.random.default_rng(seed).permutation(count)
    ends = np.rint(np.cumsum(values) * count).astype(int)
    parts = np.split(order, ends)[: len(values)]
    return {name: np.sort(part) for name, part in zip(shares, parts, strict=True)}
