"""Fit the ranker of hybrid prediction to what `benchmarks.hybrid` wrote of validation crystals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalml.benchmarks.report import show
from crystalml.errors import InputError
from crystalml.hybrid.rank import FEATURES, Ranker, fit_ranker

Table = tuple[NDArray[Any], NDArray[Any]]

FOLDS = 5


def fit(folders: Sequence[str | Path], out: str | Path, ridge: float = 0.01) -> dict[str, Any]:
    """A ranker fitted to all targets in the folders, saved to `out`; the report says what it is worth.

    The report's figures are cross-validated, each fifth of the targets ranked by a fit to the others: mean
    log likelihood of a match, match rate and RMSE at 1, 5 and 20 shots without relaxation, beside those of
    chemical likeness alone. Folders must be of one potential, and of validation rows.
    """
    targets, card = _read(folders)
    tables = [(x, np.isfinite(rms)) for x, rms in targets]
    order = np.random.default_rng(0).permutation(len(targets)) % FOLDS
    shares: list[NDArray[Any]] = [np.zeros(0)] * len(targets)
    for fold in range(FOLDS):
        if not (order == fold).any():
            continue
        held = fit_ranker([t for t, k in zip(tables, order, strict=True) if k != fold], ridge)
        for place in np.flatnonzero(order == fold).tolist():
            shares[place] = held.log_shares(targets[place][0])
    plain = [Ranker.by_score().log_shares(x) for x, _ in targets]
    report = {**_worth(targets, shares), "by score alone": _worth(targets, plain)}
    made = f"crystalml fit-ranker, {datetime.now(UTC).date()}"
    note = {"made": made, **card, "targets": len(targets), "ridge": ridge, "cross_validated": report}
    ranker = fit_ranker(tables, ridge)
    Ranker(ranker.weights, note).save(out)
    _show(ranker, report)
    return report


def _read(folders: Sequence[str | Path]) -> tuple[list[tuple[NDArray[Any], NDArray[Any]]], dict[str, Any]]:
    """(features (m, k), rms (m,) NaN without a match) of every target with proposals, and the card."""
    found = []
    rows: list[str] = []
    potentials: set[str] = set()
    for folder in folders:
        path, note = Path(folder, "proposals.jsonl"), Path(folder, "settings.json")
        if not path.is_file() or not note.is_file():
            raise InputError(
                f"{folder} has no proposals.jsonl: run `crystalml benchmark hybrid --table` into it"
            )
        settings = json.loads(note.read_text())
        rows.append(f"{settings['rows']} of {settings['test']}")
        potentials.add(str(settings.get("potential_weights")))
        seen = {}
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if row["names"] != list(FEATURES):
                raise InputError(f"{path} was written with other features; run the benchmark again")
            seen[row["id"]] = row  # a stopped run may have written a target twice
        for row in seen.values():
            if row["features"]:
                rms = [np.nan if value is None else value for value in row["rms"]]
                found.append((np.array(row["features"], float), np.array(rms, float)))
    if len(potentials) > 1:
        raise InputError(f"the folders were made with energies of different models: {sorted(potentials)}")
    return found, {"rows": rows, "potential_weights": potentials.pop()}


def _worth(targets: Sequence[Table], shares: Sequence[NDArray[Any]]) -> dict[str, Any]:
    best: dict[int, list[float]] = {1: [], 5: [], 20: []}
    likelihood = []
    for (_, rms), share in zip(targets, shares, strict=True):
        ranked = rms[np.argsort(-share, kind="stable")]
        for shots, values in best.items():
            hits = ranked[:shots][np.isfinite(ranked[:shots])]
            values.append(float(hits.min()) if len(hits) else np.nan)
        if np.isfinite(rms).any():
            likelihood.append(float(np.logaddexp.reduce(share[np.isfinite(rms)].tolist())))  # type: ignore[call-overload]
    out: dict[str, Any] = {
        "mean_log_likelihood": round(float(np.mean(likelihood)), 4) if likelihood else None
    }
    for shots, values in best.items():
        hit = np.isfinite(values)
        out[f"match_rate_{shots}"] = round(float(hit.mean()), 4)
        out[f"rmse_{shots}"] = round(float(np.array(values)[hit].mean()), 4) if hit.any() else None
    return out


def _show(ranker: Ranker, report: dict[str, Any]) -> None:
    rows = [(name, ranker.weights[name], meaning) for name, meaning in FEATURES.items()]
    show("ranker", ["feature", "weight", "meaning"], rows)
    plain = report["by score alone"]
    table = [(key, plain[key], value) for key, value in report.items() if key in plain]
    show("cross-validated, before relaxation", ["", "chemistry alone", "ranker"], table)
