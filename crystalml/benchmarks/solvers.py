"""Match rate against network evaluations: how few a sampler can do with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from crystalml import recipes
from crystalml.benchmarks.csp import ModelLike, load
from crystalml.benchmarks.csp import run as csp
from crystalml.benchmarks.report import show
from crystalml.errors import InputError
from crystalml.journal import write_json
from crystalml.sample.solvers import Solver
from crystalml.sample.solvers import solver as make


def run(
    test: str | Path,
    model: ModelLike = "dao-g",
    *,
    solvers: Sequence[Solver] = get_args(Solver),
    evaluations: Sequence[int] = (20, 50, 100, 200, 2000),
    shots: Sequence[int] = (1,),
    picture: str | Path | None = None,
    out: str | Path = "benchmark-solvers",
    **options: Any,
) -> dict[str, Any]:
    """`benchmarks.csp` for every solver and number of evaluations, each in a folder of its own in `out`.

    evaluations: at most so many a sample; a solver that evaluates twice a step takes half as many steps, and
    none more than there are levels. Flow solvers are skipped above 200, where they have converged. picture: a
    file to draw match rates into. options: as csp's. Writes `out`/result.json and returns it.
    """
    known = get_args(Solver)
    if unknown := [name for name in solvers if name not in known]:
        raise InputError(f"no solver {', '.join(unknown)}; there are {', '.join(known)}")
    if not evaluations or min(evaluations) < 2:
        raise InputError(f"evaluations must be at least 2 each, not {list(evaluations)}")
    noise = recipes.noise_for(load(model, torch.device("cpu")))
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for name in solvers:
        each = math.ceil(make(name, noise, 2).evaluations / 2)
        for most in sorted(evaluations):
            if most > 200 and name not in ("pc", "ancestral"):
                continue
            steps = min(noise.num_steps, max(1, most // each))
            folder = Path(out, f"{name}-{most}")
            result = csp(
                test, model, solver=name, steps=steps, shots=shots, gated=False, out=folder, **options
            )
            what = {
                "solver": name, "steps": steps, "evaluations": result["evaluations_per_sample"],
                "structures_per_second": result["structures_per_second"],
            }  # fmt: skip
            rows += [{**what, **score} for score in result["scores"]]
    summary = {
        "benchmark": "solvers",
        "model": result["model"],
        "targets": result["targets"],
        "rows": rows,
    }
    write_json(Path(out, "result.json"), summary)
    columns = ["solver", "evaluations", "shots", "match rate %", "RMSE", "structures/s"]
    show("match rate over evaluations", columns, [
        (
            row["solver"], row["evaluations"], row["shots"], _percent(row),
            "-" if row["rmse"] is None else f"{row['rmse']:.4f}", f"{row['structures_per_second']:.3g}",
        )
        for row in rows
    ])  # fmt: skip
    if picture is not None:
        draw(rows, picture, f"{result['model']}, {result['targets']} of {result['rows']} ({result['test']})")
    return summary


def draw(rows: Sequence[dict[str, Any]], path: str | Path, title: str = "") -> None:
    """Match rate with its 95 % interval over evaluations, a line a solver."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2), constrained_layout=True)
    shots = max(row["shots"] for row in rows)
    for k, name in enumerate(dict.fromkeys(row["solver"] for row in rows)):
        line = [row for row in rows if row["solver"] == name and row["shots"] == shots]
        x = [row["evaluations"] * 1.03**k for row in line]  # apart, so that bars can be told apart
        y = [100 * row["match_rate"] for row in line]
        low, high = ([100 * row["match_rate_interval"][side] for row in line] for side in (0, 1))
        bars = [[b - a for a, b in zip(low, y, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
        axes.errorbar(x, y, bars, marker="o", ms=4, lw=1.2, capsize=2, elinewidth=0.7, label=name)
    axes.set_xscale("log")
    counts = sorted({row["evaluations"] for row in rows if row["solver"] == rows[0]["solver"]})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("network evaluations a sample")
    axes.set_ylabel(f"match rate (%), {shots} shot{'s' if shots > 1 else ''}")
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _percent(row: dict[str, Any]) -> str:
    low, high = row["match_rate_interval"]
    return f"{100 * row['match_rate']:.1f} ({100 * low:.1f}-{100 * high:.1f})"
