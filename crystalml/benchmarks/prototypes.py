"""Structure prediction by substitution alone: the prototype atlas against the cells of a test set."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pymatgen.core import Composition, Structure

from crystalml.benchmarks.report import environment, show, write_json
from crystalml.benchmarks.targets import choose, read_test, structures
from crystalml.datasets.arrays import Arrays
from crystalml.errors import InputError
from crystalml.metrics.match import Score, TargetMatches, compare, score
from crystalml.metrics.validity import is_valid_composition
from crystalml.progress import ProgressBar
from crystalml.prototypes import PrototypeAtlas, substitute

PART = 200  # targets at a time: pymatgen structures of a whole test set would fill the memory


def run(
    test: str | Path,
    atlas: str | Path | PrototypeAtlas | None = None,
    *,
    benchmark: str | None = None,
    shots: Sequence[int] = (1, 5, 20),
    n: int | None = None,
    seed: int = 0,
    distinct: bool = True,
    same_formula: bool = True,
    gated: bool = False,
    out: str | Path = "benchmark-prototypes",
    processes: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Match rate and RMSE of the max(shots) likeliest prototypes a target, on n targets chosen by the seed.

    A target gives the composition of its cell and nothing else. atlas: a file, an atlas, or None for the
    shipped one. benchmark: of CrysDB's file, the validation rows of "mp_20_val" or "mpts_52_val".
    same_formula=False leaves crystals of a target's own composition out of the evidence: validation rows,
    unlike the test sets, may have such twins in training. Fewer predictions than shots count as failed
    shots. Writes every comparison to `out`/matches.jsonl, the figures to `out`/result.json, and returns them.
    """
    if gated:
        is_valid_composition(Composition("NaCl"))  # a missing SMACT shows before the work, not after it
    if not shots or min(shots) < 1:
        raise InputError(f"shots must be at least 1 each, not {list(shots)}")
    source = _atlas(atlas)
    targets = choose(read_test(test, benchmark), n, seed)
    options = {"distinct": distinct, "same_formula": same_formula}
    table, counts, seconds = _predict(targets, source, max(shots), options, gated, processes, progress)
    scores = [score(table, k, gate) for gate in ([False, True] if gated else [False]) for k in shots]
    result = {
        "benchmark": "prototypes",
        "test": Path(test).name,
        "rows": benchmark or "all",
        "seed": seed,
        **options,
        "atlas": {"prototypes": len(source), **source.card},
        "targets": len(targets),
        "shots": list(shots),
        "scores": [plain(item) for item in scores],
        "without_prediction": int((counts == 0).sum()),
        "mean_predictions": float(counts.mean()),
        "timeouts": sum(row.timeouts for row in table),
        "prediction_seconds": seconds,
        "structures_per_second": float(counts.sum() / seconds),
        "environment": environment(torch.device("cpu")),
    }
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"id": name, **asdict(row)} for name, row in zip(targets.ids, table, strict=True)]
    (folder / "matches.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(folder / "result.json", result)
    _print(result)
    return result


def _atlas(atlas: str | Path | PrototypeAtlas | None) -> PrototypeAtlas:
    if isinstance(atlas, PrototypeAtlas):
        return atlas
    return PrototypeAtlas.default() if atlas is None else PrototypeAtlas.load(atlas)


def _predict(
    targets: Arrays,
    atlas: PrototypeAtlas,
    shots: int,
    options: dict[str, bool],
    gated: bool,
    processes: int,
    progress: bool,
) -> tuple[list[TargetMatches], np.ndarray, float]:
    """The comparisons, the number of predictions a target, and the seconds that predicting took."""
    table: list[TargetMatches] = []
    counts: list[int] = []
    seconds = 0.0
    with ProgressBar(progress, "prototypes") as bar:
        bar.add(len(targets))
        for start in range(0, len(targets), PART):
            truths = structures(targets[start : start + PART])
            begin = time.perf_counter()
            found = [
                substitute(truth.composition, shots, atlas=atlas, warn=False, **options) for truth in truths
            ]
            seconds += time.perf_counter() - begin
            counts += [len(row) for row in found]
            padded: list[list[Structure | None]] = [[*row, *[None] * (shots - len(row))] for row in found]
            table += compare(padded, truths, gated, processes, progress=lambda _: bar.advance(1))
    return table, np.array(counts), seconds


def plain(item: Score) -> dict[str, Any]:
    """JSON knows no NaN."""
    return {
        key: None if key.startswith("rms") and not np.isfinite(value).all() else value
        for key, value in item.to_dict().items()
    }


def _print(result: dict[str, Any]) -> None:
    print_scores(
        f"prototypes on {result['test']} ({result['rows']})",
        result["scores"],
        f"{result['atlas']['prototypes']} prototypes, {result['structures_per_second']:.3g} structures/s, "
        f"{result['without_prediction']} targets without a prediction",
    )


def print_scores(title: str, scores: Sequence[dict[str, Any]], notes: str) -> None:
    rows = []
    for item in scores:
        low, high = item["match_rate_interval"]
        rows.append((
            f"{item['shots']}-shot{', gated' if item['gated'] else ''}",
            f"{100 * item['match_rate']:.2f} ({100 * low:.1f}-{100 * high:.1f})",
            *("-" if item[key] is None else f"{item[key]:.4f}" for key in ("rmse", "rms_median")),
            f"{item['matched']}/{item['total']}",
        ))  # fmt: skip
    show(title, ["", "match rate % (95 %)", "RMSE", "median rms of all", "matched"], rows, notes)
