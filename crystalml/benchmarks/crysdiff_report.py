"""What CrysDiff's study says: figures over all seeds, and rows beside each other on the same crystals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalml.benchmarks.report import show
from crystalml.metrics.intervals import bootstrap_mean

Records = Sequence[Mapping[str, Any]]

PRINTED = "CrysDiff"
"""The row that the ablations are compared with."""
_STATES = ("pretrained", "frozen", "scratch")
PAIRS = [
    *((f"{state} + diffusion", "scratch + regression") for state in _STATES),
    *((f"{state} + diffusion", f"{state} + regression") for state in _STATES[:2]),
    ("pretrained + diffusion", "pretrained + regression again"),
]
"""Which rows are compared crystal by crystal."""
_FIGURES = ("mae", "crps", "coverage", "width", "moved")
_LABELS = {"mae": "MAE", "crps": "CRPS"}


def pooled(records: Records) -> list[dict[str, Any]]:
    """The figures of every property, row and fraction over the seeds: means, and 95 % over crystals."""
    found = []
    for _, group in groupby(sorted(records, key=_cell), key=_cell):
        fits = list(group)
        first = fits[0]
        cell = {key: first[key] for key in ("property", "row", "fraction", "unit", "train", "val")}
        cell |= {"seeds": [fit["seed"] for fit in fits], "epochs": first["epochs"]}
        crystals = np.concatenate([fit["crystals"] for fit in fits])
        cell |= {"test": len(np.unique(crystals)), "seconds": sum(fit["seconds"] for fit in fits)}
        cell["deviation"] = float(np.concatenate([fit["deviation"] for fit in fits]).mean())
        for key in _FIGURES:
            if key in first:
                cell[key] = _mean(np.concatenate([fit[key] for fit in fits]), crystals)
        found.append(cell)
    return found


def paired(records: Records, first: str, second: str, key: str) -> list[dict[str, Any]]:
    """Mean of first - second, seed by seed on the same crystals; below 0, first is better."""
    others = {(_place(r), r["seed"]): r for r in records if r["row"] == second}
    mine = (r for r in records if r["row"] == first and (_place(r), r["seed"]) in others)
    found = []
    for place, group in groupby(sorted(mine, key=_place), key=_place):
        fits = [(r, others[place, r["seed"]]) for r in group]
        gap = np.concatenate([np.subtract(a[key], b[key]) for a, b in fits])
        crystals = np.concatenate([a["crystals"] for a, _ in fits])
        found.append({"property": place[0], "fraction": place[1], **_mean(gap, crystals)})
    return found


def pairs(records: Records) -> list[dict[str, Any]]:
    """All of `PAIRS` in MAE and CRPS, and the ablations beside the row they are of."""
    names = dict.fromkeys(r["row"] for r in records)
    wanted = [(*rows, key) for rows in PAIRS for key in _LABELS]
    wanted += [(name, PRINTED, "mae") for name in names if name.startswith(f"{PRINTED} w/o")]
    found = (
        {"first": a, "second": b, "key": key, "gaps": paired(records, a, b, key)} for a, b, key in wanted
    )
    return [pair for pair in found if pair["gaps"]]


def _mean(values: NDArray[Any], crystals: NDArray[Any]) -> dict[str, Any]:
    """The mean and its interval; a crystal that several seeds test is drawn with all of them or not."""
    return {"mean": float(values.mean()), "interval": bootstrap_mean(values, crystals)}


def _place(record: Mapping[str, Any]) -> tuple[str, float]:
    return record["property"], record["fraction"]


def _cell(record: Mapping[str, Any]) -> tuple[str, float, str]:
    return record["property"], -record["fraction"], record["row"]


def show_all(result: Mapping[str, Any]) -> None:
    """Print a table for every property, the pairs, how many intervals hold, and what chains cost."""
    records = result["records"]
    for name, group in groupby(records, key=lambda r: r["property"]):
        _table(name, list(group))
    for pair in result["pairs"]:
        _show_pair(pair)
    _show_coverage(records)
    if clock := result["timing"]:
        encode = clock["encoder_seconds"]
        for chains, seconds in clock["chain_seconds"].items():
            print(
                f"{chains} chains after an encoder pass: {1 + seconds / encode:.2f} x the pass alone "
                f"({clock['crystals']} crystals: {encode:.2f} + {seconds:.2f} s)"
            )


def _table(name: str, cells: Records) -> None:
    turned = any("moved" in cell for cell in cells)
    columns = ["", "MAE (95 %)", "CRPS (95 %)", "width of 90 %", "held % (95 %)"]
    columns += [*(["MAE, moved (95 %)"] if turned else []), "labels", "epochs", "seeds"]
    table = [
        (
            cell["row"] if cell["fraction"] == 100 else f"{cell['row']} ({cell['fraction']:g} %)",
            *(_figure(cell[key]) for key in ("mae", "crps")),
            f"{cell['width']['mean']:.4g}",
            _figure(cell["coverage"], 100),
            *([_figure(cell["moved"]) if "moved" in cell else "-"] if turned else []),
            str(cell["train"]),
            str(cell["epochs"]),
            str(len(cell["seeds"])),
        )
        for cell in cells
    ]
    tested, median = cells[0]["test"], cells[0]["deviation"]
    note = f"{tested} test crystals; the training median has MAE {median:.4g}"
    show(f"{name} {cells[0]['unit']}", columns, table, note)


def _figure(part: Mapping[str, Any], factor: float = 1) -> str:
    low, high = part["interval"]
    return f"{factor * part['mean']:.4g} ({factor * low:.4g}-{factor * high:.4g})"


def _show_pair(pair: Mapping[str, Any]) -> None:
    """On how many properties the first is better, and by how much on the same crystals."""
    gaps = pair["gaps"]
    below = sum(gap["mean"] < 0 for gap in gaps)
    clearly, above = sum(gap["interval"][1] < 0 for gap in gaps), sum(gap["interval"][0] > 0 for gap in gaps)
    count = f"on {below} of {len(gaps)} (clearly on {clearly}, clearly above on {above})"
    print(f"{pair['first']} is below {pair['second']} in {_LABELS[pair['key']]} {count}")
    for gap in gaps:
        low, high = gap["interval"]
        print(f"    {gap['property']}, {gap['fraction']:g} %: {gap['mean']:+.4g} ({low:+.4g} to {high:+.4g})")


def _show_coverage(records: Records) -> None:
    for row in dict.fromkeys(r["row"] for r in records):
        held = [r["coverage"] for r in records if r["row"] == row]
        mean = f"{100 * float(np.mean([each['mean'] for each in held])):.1f} % in the mean"
        near = sum(abs(each["mean"] - 0.9) <= 0.02 for each in held)
        maybe = sum(each["interval"][0] <= 0.92 and each["interval"][1] >= 0.88 for each in held)
        print(
            f"{row}: intervals of 90 % hold {mean}, 88 to 92 % on {near} of {len(held)} "
            f"(95 % intervals reach it on {maybe})"
        )
