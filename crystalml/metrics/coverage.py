"""Does a generator reach what there is: coverage of a reference set, and of its polymorphs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core.structure import Structure
from scipy.spatial.distance import cdist

from crystalml.errors import InputError
from crystalml.metrics.intervals import Interval, bootstrap_ratio
from crystalml.metrics.match import MatchTolerances, compare

Array = NDArray[np.float64]
_ROWS = 512  # rows of a distance matrix at once


@dataclass(frozen=True)
class Cutoffs:
    """How near is covered: distance of structure fingerprints and of composition fingerprints."""

    structure: float = 0.4  # CDVAE, compute_metrics.py, for MP-20; 0.2 for Perov-5 and Carbon-24
    composition: float = 10.0  # the same; 4 for Perov-5 and Carbon-24


DEFAULT_CUTOFFS = Cutoffs()


@dataclass(frozen=True)
class Coverage:
    """recall: share of the reference near a sample; precision: share of the samples near the reference.

    With CDVAE's definition the nearest structure and the nearest composition may be of two different
    crystals; the joint figures ask for one crystal that is near in both. Intervals are 95 % bootstrap
    intervals over the crystals counted. amsd and amcd: mean distance to the nearest structure and
    composition, for (recall, precision).
    """

    recall: float
    recall_interval: Interval
    precision: float
    precision_interval: Interval
    joint_recall: float
    joint_precision: float
    amsd: tuple[float, float]
    amcd: tuple[float, float]
    covered: NDArray[np.bool_]  # (n,) by sample, False for those without a fingerprint
    reached: NDArray[np.bool_]  # (m,) by reference crystal


def coverage(
    structures: Sequence[Array | None],
    compositions: Sequence[Array],
    reference_structures: Sequence[Array | None],
    reference_compositions: Sequence[Array],
    cutoffs: Cutoffs | None = None,
    seed: int = 0,
) -> Coverage:
    """COV-R and COV-P of CDVAE (Xie et al., ICLR 2022) from the fingerprints of `metrics.fingerprints`.

    A sample without structure fingerprint (None) covers nothing and counts in the denominator, as there;
    reference crystals without one are left out.
    """
    near = cutoffs or DEFAULT_CUTOFFS
    mine = [i for i, row in enumerate(structures) if row is not None]
    theirs = [i for i, row in enumerate(reference_structures) if row is not None]
    if not (mine and theirs):
        raise InputError(
            f"no fingerprints to compare: {len(mine)} of samples, {len(theirs)} of the reference"
        )
    least = _nearest(
        np.array([structures[i] for i in mine]),
        np.array([reference_structures[i] for i in theirs]),
        np.array([compositions[i] for i in mine]),
        np.array([reference_compositions[i] for i in theirs]),
        near,
    )
    covered = np.zeros(len(structures), bool)
    covered[mine] = (least["s row"] <= near.structure) & (least["c row"] <= near.composition)
    reached = np.zeros(len(reference_structures), bool)
    reached[theirs] = (least["s column"] <= near.structure) & (least["c column"] <= near.composition)
    hits = reached[theirs]
    return Coverage(
        recall=float(hits.mean()),
        recall_interval=bootstrap_ratio(hits, np.ones(len(hits)), seed),
        precision=float(covered.mean()),
        precision_interval=bootstrap_ratio(covered, np.ones(len(covered)), seed),
        joint_recall=float(least["joint column"].mean()),
        joint_precision=float(least["joint row"].sum() / len(structures)),
        amsd=(float(least["s column"].mean()), float(least["s row"].mean())),
        amcd=(float(least["c column"].mean()), float(least["c row"].mean())),
        covered=covered,
        reached=reached,
    )


def _nearest(s: Array, s_ref: Array, c: Array, c_ref: Array, near: Cutoffs) -> dict[str, NDArray[Any]]:
    """Least distance of every row (sample) and column (reference) for structures s and compositions c."""
    out = {f"{kind} row": np.full(len(s), np.inf) for kind in "sc"}
    out |= {f"{kind} column": np.full(len(s_ref), np.inf) for kind in "sc"}
    out |= {"joint row": np.zeros(len(s), bool), "joint column": np.zeros(len(s_ref), bool)}
    for start in range(0, len(s), _ROWS):
        part = slice(start, start + _ROWS)
        distance = {"s": cdist(s[part], s_ref), "c": cdist(c[part], c_ref)}
        for kind, matrix in distance.items():
            out[f"{kind} row"][part] = matrix.min(axis=1)
            out[f"{kind} column"] = np.minimum(out[f"{kind} column"], matrix.min(axis=0))
        both = (distance["s"] <= near.structure) & (distance["c"] <= near.composition)
        out["joint row"][part] = both.any(axis=1)
        out["joint column"] |= both.any(axis=0)
    return out


@dataclass(frozen=True)
class PolymorphCoverage:
    """Of reference crystals that share their formula with others, how many a generator finds.

    polymorphs: such crystals; found: those that some sample of their formula matches; complete: share of
    formulas all of whose polymorphs are found; rmse: mean best rms (over (V/N)^(1/3)) of the found ones.
    """

    formulas: int
    polymorphs: int
    found: int
    share: float
    interval: Interval
    complete: float
    rmse: float
    best: dict[int, float | None]  # place in the reference -> best rms


def polymorph_coverage(
    samples: Sequence[Structure | None],
    reference: Sequence[Structure],
    processes: int = 1,
    tolerances: MatchTolerances | None = None,
    timeout: float | None = 60.0,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> PolymorphCoverage | None:
    """All samples of a formula against each of its polymorphs, as in DAO's Fig. 3(b); None without any.

    A polymorph is a reference crystal whose reduced formula occurs more than once in the reference; sets
    such as MP-20 hold no crystal twice.
    """
    by_formula: dict[str, list[int]] = defaultdict(list)
    for place, structure in enumerate(reference):
        by_formula[structure.composition.reduced_formula].append(place)
    groups = [places for places in by_formula.values() if len(places) > 1]
    if not groups:
        return None
    drawn: dict[str, list[Structure | None]] = defaultdict(list)
    for sample in samples:
        if sample is not None:
            drawn[sample.composition.reduced_formula].append(sample)
    targets = [place for group in groups for place in group]
    pools = [drawn.get(reference[place].composition.reduced_formula, []) for place in targets]
    rows = compare(
        pools, [reference[i] for i in targets], False, processes, tolerances, timeout, progress=progress
    )
    best = {
        place: min((rms for rms in row.rms if rms is not None), default=None)
        for place, row in zip(targets, rows, strict=True)
    }
    hits = np.array([best[place] is not None for place in targets])
    found = [rms for rms in best.values() if rms is not None]
    return PolymorphCoverage(
        formulas=len(groups),
        polymorphs=len(targets),
        found=int(hits.sum()),
        share=float(hits.mean()),
        interval=bootstrap_ratio(hits, np.ones(len(hits)), seed),
        complete=float(np.mean([all(best[place] is not None for place in group) for group in groups])),
        rmse=float(np.mean(found)) if found else float("nan"),
        best=best,
    )
