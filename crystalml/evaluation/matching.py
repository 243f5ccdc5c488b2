"""Match rate, RMSE and polymorph coverage of samples whose targets are in the reference."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Composition, Structure

from crystalml.errors import InputError, UnsupportedError
from crystalml.evaluation.distributions import Table
from crystalml.evaluation.result import Metric
from crystalml.evaluation.samples import Crystals
from crystalml.evaluation.store import Store
from crystalml.metrics.coverage import polymorph_coverage
from crystalml.metrics.match import TargetMatches, compare, score
from crystalml.metrics.validity import is_valid_composition

Pair = tuple[list[Structure | None], Structure]
_PART = 100  # targets between two writes
BY_TARGET, BY_FORMULA = "by target id", "by reduced formula"


def match(
    mine: Crystals,
    table: Table,
    theirs: Crystals,
    store: Store,
    shots: Sequence[int],
    gated: bool,
    processes: int,
    seed: int,
    progress: bool,
) -> tuple[dict[str, Metric], str]:
    """n-shot match rates and RMSE, gated too where wanted; (metrics, how samples and targets were paired).

    Samples that name a target (`target`, `material_id` or `id` among their properties) are its shots in their
    order; otherwise all samples of a reduced formula are shots at each reference crystal of that formula.
    """
    pools, pairing = _pools(mine, theirs)
    if not any(pools):
        return {}, "no sample shares a formula with the reference"
    gated = gated and _smact()
    rows = _compare(mine, theirs, pools, gated, store, processes, progress)
    _note(table, theirs, pools, rows)
    most = max(len(row.rms) for row in rows)
    wanted = sorted({min(shot, most) for shot in shots if shot >= 1})
    if not wanted:
        raise InputError(f"shots must be at least 1 each, not {list(shots)}")
    found: dict[str, Metric] = {}
    for shot in wanted:
        for gate in (False, True) if gated else (False,):
            found |= _scores(rows, shot, gate, pairing, seed)
    return found | _polymorphs(mine, theirs, processes, seed), pairing


def partners(mine: Crystals, theirs: Crystals) -> NDArray[np.int64] | None:
    """(n,) the reference crystal that each sample stands for, -1 for one that cannot be read.

    Its target, or the next unused crystal of its formula, provided that there is one for every sample and
    that half of the reference is used; None where samples are no such answers, but draws of their own.
    """
    out = np.full(len(mine), -1, np.int64)
    pools, pairing = _pools(mine, theirs)
    if pairing == BY_TARGET:
        for place, pool in enumerate(pools):
            out[pool] = place
        out[[i for i, structure in enumerate(mine.structures) if structure is None]] = -1
        return out
    free: dict[str, list[int]] = defaultdict(list)
    for place, structure in enumerate(theirs.structures):
        free[_formula(structure)].append(place)
    for i in mine.readable:
        rest = free[_formula(mine.structures[i])]
        if not rest:
            return None
        out[i] = rest.pop(0)
    return out if 2 * len(mine.readable) >= len(theirs) else None


def _pools(mine: Crystals, theirs: Crystals) -> tuple[list[list[int]], str]:
    """For each reference crystal the places of its samples, and how they were found."""
    own = theirs.targets or [None] * len(theirs)
    ids = [target or name for target, name in zip(own, theirs.names, strict=True)]
    places = {name: i for i, name in enumerate(ids)}
    known = [target in places for target in mine.targets]
    if known and all(known):
        if len(places) < len(theirs):
            raise InputError("ids of the reference repeat, so the samples' targets cannot be told apart")
        pools: list[list[int]] = [[] for _ in theirs.names]
        for i, target in enumerate(mine.targets):
            assert target is not None
            pools[places[target]].append(i)
        return pools, BY_TARGET
    if any(known):
        i = known.index(False)
        raise InputError(
            f"sample {mine.names[i]} is for {mine.targets[i]!r}, which the reference does not hold"
        )
    if mine.targets and all(mine.targets):
        warnings.warn(
            f"every sample names its target, the first {mine.targets[0]!r}, and the reference, whose first "
            f"is {ids[0]!r}, holds none of them: samples are shots at every crystal of their formula",
            stacklevel=2,
        )
    by_formula: dict[str, list[int]] = defaultdict(list)
    for i in mine.readable:
        by_formula[_formula(mine.structures[i])].append(i)
    return [by_formula.get(_formula(s), []) for s in theirs.structures], BY_FORMULA


def _formula(structure: Structure | None) -> str:
    return "" if structure is None else str(structure.composition.reduced_formula)


def _smact() -> bool:
    try:
        is_valid_composition(Composition("NaCl"))
    except UnsupportedError:
        return False
    return True


def _compare(
    mine: Crystals,
    theirs: Crystals,
    pools: list[list[int]],
    gated: bool,
    store: Store,
    processes: int,
    progress: bool,
) -> list[TargetMatches]:
    digests, targets = mine.digests(), theirs.digests()
    keys, pairs = [], []
    for place, (target, pool) in enumerate(zip(theirs.structures, pools, strict=True)):
        assert target is not None  # an unreadable reference has been refused
        pairs.append(([mine.structures[i] for i in pool], target))
        joined = " ".join([targets[place], *(digests[i] for i in pool)])
        keys.append(hashlib.blake2b(joined.encode(), digest_size=12).hexdigest())

    def compute(chosen: list[Pair]) -> Iterator[dict[str, Any]]:
        for start in range(0, len(chosen), _PART):
            part = chosen[start : start + _PART]
            rows = compare([samples for samples, _ in part], [target for _, target in part], gated, processes)
            yield from map(asdict, rows)

    kind = f"match gated={gated}"
    return [TargetMatches(**row) for row in store.fill(kind, pairs, keys, compute, "matching", progress)]


def _note(table: Table, theirs: Crystals, pools: list[list[int]], rows: list[TargetMatches]) -> None:
    """The best match of each sample: columns `matched` (reference name) and `rms`."""
    best: dict[int, tuple[float, str]] = {}
    for name, pool, row in zip(theirs.names, pools, rows, strict=True):
        for i, rms in zip(pool, row.rms, strict=True):
            if rms is not None and (i not in best or rms < best[i][0]):
                best[i] = (rms, name)
    count = len(table["name"])
    table["matched"] = [best[i][1] if i in best else None for i in range(count)]
    table["rms"] = [best[i][0] if i in best else None for i in range(count)]


def _scores(rows: list[TargetMatches], shots: int, gated: bool, pairing: str, seed: int) -> dict[str, Metric]:
    found = score(rows, shots, gated, seed)
    key, label = f"{shots}{'_gated' if gated else ''}", f"{shots}-shot{', gated' if gated else ''}"
    of = f"StructureMatcher(ltol 0.3, stol 0.5, angle 10), paired {pairing}"
    gate = "; invalid samples (in 1-shot also targets) never match" if gated else ""
    out = {
        f"match_rate_{key}": Metric(
            f"match rate, {label}", found.match_rate, "%", found.total, found.match_rate_interval,
            note=f"reference crystals that one of their first {shots} samples matches; {of}{gate}",
        )
    }  # fmt: skip
    if math.isfinite(found.rmse):
        out[f"rmse_{key}"] = Metric(
            f"RMSE, {label}", found.rmse, "(V/N)^(1/3)", found.matched, found.rmse_interval,
            note="mean of the best rms over matched targets only: never compare it without the match rate",
        )  # fmt: skip
    return out


def _polymorphs(mine: Crystals, theirs: Crystals, processes: int, seed: int) -> dict[str, Metric]:
    reference = [s for s in theirs.structures if s is not None]
    found = polymorph_coverage(mine.structures, reference, processes, seed=seed)
    if found is None:
        return {}
    note = (
        f"of {found.formulas} formulas that occur more than once, crystals that some sample of their formula "
        f"matches; all found for {100 * found.complete:.1f} %"
    )
    return {
        "polymorphs": Metric(
            "polymorph coverage", found.share, "%", found.polymorphs, found.interval, note=note
        )
    }
