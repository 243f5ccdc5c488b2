"""A conformance suite for any ASE calculator: the laws that a potential and its adapter must keep.

    from crystalml.conformance import check_calculator

    report = check_calculator(EMT)
    assert report.ok, report

Needs ASE and numpy only, so that it runs in the environment of whatever calculator is examined. What each
check asks for and how tightly: docs/conformance.md and the modules of this package, one to a group or two.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from crystalml.conformance.cases import Pair
from crystalml.conformance.contract import check_contract
from crystalml.conformance.derivatives import check_forces, check_stress
from crystalml.conformance.distances import check_dimers, check_isolated, check_smooth
from crystalml.conformance.report import Report, Result, Status
from crystalml.conformance.subject import Dtype, Subject, factory_of, quiet
from crystalml.conformance.symmetry import check_cells, check_invariance
from crystalml.errors import InputError

__all__ = ["CHECKS", "Report", "Result", "Status", "check_calculator"]

Check = Callable[[Subject], Iterator[Result]]

CHECKS: dict[str, Check] = {
    "forces": check_forces,
    "stress": check_stress,
    "invariance": check_invariance,
    "cells": check_cells,
    "isolated": check_isolated,
    "smooth": check_smooth,
    "dimer": check_dimers,
    "contract": check_contract,
}
"""The groups of checks, in the order in which they run."""


def check_calculator(
    calculator: Any,
    *,
    only: Sequence[str] = (),
    elements: Pair | None = None,
    pairs: Sequence[Pair] | None = None,
    all_pairs: bool = False,
    dtype: Dtype | None = None,
    seed: int = 0,
    on_result: Callable[[Result], None] | None = None,
) -> Report:
    """Examine an ASE calculator, or better a function or class that makes one; a failure raises nothing.

    only: groups of CHECKS (all). elements: two that the calculator knows, to build crystals, slabs and
    molecules from (the first of a few common pairs that works). pairs: dimers to scan for holes; all_pairs
    takes all that the calculator knows, thousands. dtype: precision to expect, else told from the scatter of
    the energy. on_result is called after each result. Raises InputError if no bulk crystal can be computed.
    """
    unknown = sorted(set(only) - set(CHECKS))
    if unknown:
        raise InputError(f"no checks called {', '.join(unknown)}: choose among {', '.join(CHECKS)}")
    chosen_pairs = tuple(pairs) if pairs else None
    subject = Subject(factory_of(calculator), elements, chosen_pairs, all_pairs, dtype, seed)
    results = []
    for name, check in CHECKS.items():
        if not only or name in only:
            for result in _quietly(check(subject)):
                results.append(result)
                if on_result:
                    on_result(result)
    return Report(subject.name, tuple(results), _info(subject))


def _quietly(results: Iterator[Result]) -> Iterator[Result]:
    while True:
        with quiet():
            result = next(results, None)
        if result is None:
            return
        yield result


def _info(subject: Subject) -> dict[str, Any]:
    packages = ["ase", "numpy", "torch", type(subject.calc).__module__.partition(".")[0]]
    versions = {}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "elements": "-".join(subject.cases.pair),
        "precision": subject.dtype,
        "relative_noise": subject.relative_noise,
        "seed": subject.seed,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "versions": versions,
    }
