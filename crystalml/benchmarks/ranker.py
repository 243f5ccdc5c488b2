"""Fit the ranker of hybrid prediction to what `benchmarks.hybrid` wrote of validation crystals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalml.benchmarks.report import show
from crystalml.errors import InputError
from crystalml.hybrid.rank import AFTER, FEATURES, Ranker, fit_after, fit_ranker

Array = NDArray[Any]

FOLDS = 5


@dataclass(frozen=True)
class _Target:
    """features (m, k) and rms (m,), NaN without a match, of the proposals; of those that were relaxed their
    places among all, features_after but log P (r, 2), and rms (r,).
    """

    features: Array
    rms: Array
    places: Array
    told: Array
    rms_after: Array

    @property
    def before(self) -> tuple[Array, Array]:
        return self.features, np.isfinite(self.rms)

    def after(self, ranker: Ranker) -> tuple[Array, Array]:
        """What the second logit reads, if the ranker was the first."""
        share = ranker.log_shares(self.features)[self.places]
        return np.column_stack([share, self.told]), np.isfinite(self.rms_after)


def fit(
    folders: Sequence[str | Path], out: str | Path, ridge: float = 0.01, first: Ranker | None = None
) -> dict[str, Any]:
    """A ranker fitted to all targets in the folders, saved to `out`; the report says what it is worth.

    The report's figures are cross-validated, each fifth of the targets ranked by a fit to the others: mean
    log likelihood of a match, match rate and RMSE at 1, 5 and 20 shots, by chemical likeness alone and by the
    ranker without relaxation, and of what was relaxed in the order before and after. Folders must be of one
    potential, and of validation rows. first: a ranker whose weights before relaxation stay; only the few that
    follow it are fitted, for which fewer targets do.
    """
    targets, card = _read(folders)
    order = np.random.default_rng(0).permutation(len(targets)) % FOLDS
    held = {
        k: _ranker([t for t, o in zip(targets, order, strict=True) if o != k], ridge, first)
        for k in set(order)
    }
    rankers = [held[k] for k in order]
    plain = [Ranker.by_score().log_shares(t.features) for t in targets]
    shares = [r.log_shares(t.features) for r, t in zip(rankers, targets, strict=True)]
    relaxed = [r.log_shares_after(t.after(r)[0]) for r, t in zip(rankers, targets, strict=True)]
    rms, rms_after = [t.rms for t in targets], [t.rms_after for t in targets]
    report = {
        "by score alone": _worth(rms, plain),
        "ranker": _worth(rms, shares),
        "relaxed, in that order": _worth(
            rms_after, [s[t.places] for s, t in zip(shares, targets, strict=True)]
        ),
        "relaxed, ranked anew": _worth(rms_after, relaxed),
    }
    made = f"crystalml fit-ranker, {datetime.now(UTC).date()}"
    note = {"made": made, **card, "targets": len(targets), "ridge": ridge, "cross_validated": report}
    if first is not None:
        note["first"] = first.card
    ranker = replace(_ranker(targets, ridge, first), card=note)
    ranker.save(out)
    _show(ranker, report)
    return report


def _ranker(targets: Sequence[_Target], ridge: float, first: Ranker | None) -> Ranker:
    ranker = first or fit_ranker([t.before for t in targets], ridge)
    tables = [t.after(ranker) for t in targets]
    return fit_after(ranker, tables) if any(y.any() and not y.all() for _, y in tables) else ranker


def _read(folders: Sequence[str | Path]) -> tuple[list[_Target], dict[str, Any]]:
    """Every target with proposals, and the card."""
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
            if row["names"] != list(FEATURES) or "after" not in row:
                raise InputError(f"{path} was written with other features; run the benchmark again")
            seen[row["id"]] = row  # a stopped run may have written a target twice
        for row in seen.values():
            if row["features"]:
                after = row["after"]
                told = np.array(after["features"], float).reshape(-1, 2)
                places, rms_after = np.array(after["proposals"], int), np.array(after["rms"], float)
                rms = np.array(row["rms"], float)  # None, no match, is NaN
                found.append(_Target(np.array(row["features"], float), rms, places, told, rms_after))
    if len(potentials) > 1:
        raise InputError(f"the folders were made with energies of different models: {sorted(potentials)}")
    return found, {"rows": rows, "potential_weights": potentials.pop()}


def _worth(matches: Sequence[Array], shares: Sequence[Array]) -> dict[str, Any]:
    best: dict[int, list[float]] = {1: [], 5: [], 20: []}
    likelihood = []
    for rms, share in zip(matches, shares, strict=True):
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
    for title, weights, known in (
        ("ranker", ranker.weights, FEATURES), ("after relaxation", ranker.after, AFTER),
    ):  # fmt: skip
        show(title, ["feature", "weight", "meaning"], [(name, weights[name], known[name]) for name in known])
    columns = list(report)
    table = [(key, *(report[name][key] for name in columns)) for key in report[columns[0]]]
    show("cross-validated", ["", *columns], table)
