"""Match rate and RMSE of crystal structure prediction, as DiffCSP and DAO report them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core.structure import Structure

from crystalml.errors import InputError
from crystalml.metrics.intervals import Interval, bootstrap_ratio
from crystalml.metrics.validity import has_fingerprint, is_valid_composition, is_valid_structure
from crystalml.parallel import process_map, time_limit


@dataclass(frozen=True)
class MatchTolerances:
    """Tolerances of pymatgen's StructureMatcher; the defaults are DiffCSP's and DAO's."""

    ltol: float = 0.3
    stol: float = 0.5
    angle_tol: float = 10.0

    def matcher(self) -> StructureMatcher:
        return StructureMatcher(ltol=self.ltol, stol=self.stol, angle_tol=self.angle_tol)


@dataclass(frozen=True)
class TargetMatches:
    """One target and its samples.

    rms: per sample the displacement over (V/N)^(1/3), None without a match. valid: per sample whether it
    passes the validity gate, None where nothing hangs on it (no match, or no gate asked for).
    target_valid: the same for the target. timeouts: samples whose comparison ran out of time (no match).
    """

    formula: str
    rms: list[float | None]
    valid: list[bool | None]
    target_valid: bool | None
    timeouts: int

    def best(self, shots: int, gated: bool) -> float | None:
        """Smallest rms of the first `shots` samples; DiffCSP's gate asks the target, too, in 1-shot only."""
        if gated and shots == 1 and not self.target_valid:
            return None
        found = [
            rms
            for rms, valid in zip(self.rms[:shots], self.valid[:shots], strict=True)
            if rms is not None and (valid or not gated)
        ]
        return min(found, default=None)


@dataclass(frozen=True)
class Score:
    """match_rate = matched / all targets; rmse = mean of the best rms over matched targets only.

    Intervals are 95 % bootstrap intervals over targets. The RMSE of two methods covers different
    targets: never compare it without the match rate. rmse is NaN if nothing matched. rms_median: the median
    of the best rms over all targets, infinite where nothing matches: it compares methods as it is.
    """

    shots: int
    gated: bool
    match_rate: float
    match_rate_interval: Interval
    rmse: float
    rmse_interval: Interval
    rms_median: float
    matched: int
    total: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class MatchResult:
    """Scores in the order of `shots` asked for, and the table behind them."""

    scores: list[Score]
    targets: list[TargetMatches]

    @property
    def timeouts(self) -> int:
        return sum(target.timeouts for target in self.targets)


def match_rate(
    predictions: Sequence[Sequence[Structure | None]],
    targets: Sequence[Structure],
    shots: Sequence[int] = (1, 20),
    gated: bool = False,
    processes: int = 1,
    tolerances: MatchTolerances | None = None,
    timeout: float | None = 60.0,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> MatchResult:
    """n-shot match rate and RMSE: a target counts as met if any of its first n samples matches it.

    A sample matches if StructureMatcher(stol=0.5, angle_tol=10, ltol=0.3).get_rms_dist(sample, target)
    is not None; its rms is the first number, already over (V/N)^(1/3). `gated` adds DiffCSP's hidden
    gate: invalid samples (`metrics.validity`) never match, nor in 1-shot do invalid targets.

    predictions: for every target its samples, best first or in order of sampling; None is a failed
    sample. timeout: seconds for one comparison, then no match. progress: called with targets done.
    """
    table = compare(predictions, targets, gated, processes, tolerances, timeout, progress)
    return MatchResult([score(table, n, gated, seed) for n in shots], table)


def compare(
    predictions: Sequence[Sequence[Structure | None]],
    targets: Sequence[Structure],
    gated: bool = False,
    processes: int = 1,
    tolerances: MatchTolerances | None = None,
    timeout: float | None = 60.0,
    progress: Callable[[int], None] | None = None,
) -> list[TargetMatches]:
    """The table that `score` reads; with `gated` it serves gated and ungated scores."""
    if len(predictions) != len(targets):
        raise InputError(f"{len(predictions)} lists of predictions for {len(targets)} targets; give one each")
    if processes < 1:
        raise InputError(f"processes must be at least 1, not {processes}")
    chosen = tolerances or MatchTolerances()
    work = [
        _Task(list(samples), target, gated, chosen, timeout)
        for samples, target in zip(predictions, targets, strict=True)
    ]
    table = []
    for done, row in enumerate(process_map(_compare, work, processes, chunk=1), start=1):
        table.append(row)
        if progress is not None:
            progress(done)
    return table


def score(table: Sequence[TargetMatches], shots: int, gated: bool, seed: int = 0) -> Score:
    """Match rate and RMSE of the first `shots` samples, with bootstrap intervals."""
    most = max((len(row.rms) for row in table), default=0)
    if not table or not 1 <= shots <= most:
        raise InputError(f"cannot score {shots} shots of {len(table)} targets with up to {most} samples each")
    if gated and any(row.target_valid is None for row in table):
        raise InputError("this table was made without the validity gate; compare again with gated=True")
    best = np.array([np.nan if (b := row.best(shots, gated)) is None else b for row in table])
    matched = np.isfinite(best)
    return Score(
        shots=shots,
        gated=gated,
        match_rate=float(matched.mean()),
        match_rate_interval=bootstrap_ratio(matched, np.ones(len(table)), seed),
        rmse=float(best[matched].mean()) if matched.any() else float("nan"),
        rmse_interval=bootstrap_ratio(np.nan_to_num(best), matched, seed),
        rms_median=float(np.median(np.where(matched, best, np.inf))),
        matched=int(matched.sum()),
        total=len(table),
    )


@dataclass(frozen=True)
class _Task:
    samples: list[Structure | None]
    target: Structure
    gated: bool
    tolerances: MatchTolerances
    timeout: float | None


def _compare(task: _Task) -> TargetMatches:
    """Match first, then gate what matched: CrystalNN is far dearer than the matcher."""
    matcher = task.tolerances.matcher()
    outcomes = [_rms(matcher, sample, task.target, task.timeout) for sample in task.samples]
    rms = [value for value, _ in outcomes]
    valid: list[bool | None] = [None] * len(rms)
    target_valid: bool | None = None
    if task.gated:
        composition_valid = is_valid_composition(task.target.composition)  # a match shares it
        valid = [
            None if value is None or sample is None else composition_valid and _sound(sample, task.timeout)
            for value, sample in zip(rms, task.samples, strict=True)
        ]
        target_valid = composition_valid and (
            not any(value is not None for value in rms) or _sound(task.target, task.timeout)
        )
    return TargetMatches(
        task.target.composition.reduced_formula, rms, valid, target_valid, sum(late for _, late in outcomes)
    )


def _sound(structure: Structure, timeout: float | None) -> bool:
    try:
        with time_limit(timeout):
            return is_valid_structure(structure) and has_fingerprint(structure)
    except TimeoutError:
        return False


def _rms(
    matcher: StructureMatcher, sample: Structure | None, target: Structure, timeout: float | None
) -> tuple[float | None, bool]:
    """(rms or None, whether time ran out); a sample the matcher chokes on is no match, as in DiffCSP."""
    if sample is None:
        return None, False
    try:
        with time_limit(timeout):
            found = matcher.get_rms_dist(sample, target)
    except TimeoutError:
        return None, True
    except Exception:  # a collapsed cell breaks the reduction or spglib in many ways
        return None, False
    return (None if found is None else float(found[0])), False
