"""Property prediction on MatBench's tasks: pretrained encoders beside baselines, with the paper's rows."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crystalml.benchmarks.matbench_tasks import TASKS, Data, Task, load_task, split
from crystalml.benchmarks.report import environment, show
from crystalml.crystal import CrystalBatch
from crystalml.datasets.arrays import pack
from crystalml.device import pick_device
from crystalml.embed import knows_cell
from crystalml.errors import InputError
from crystalml.journal import Journal, write_json
from crystalml.metrics.intervals import bootstrap_mean
from crystalml.models.model import EncoderConfig
from crystalml.primitive import primitive_cells
from crystalml.progress import ProgressBar
from crystalml.property import PropertyPredictor
from crystalml.weights.registry import fingerprint, load_model

Values = NDArray[np.float64]

PLAIN = ("mean", "magpie-rf")
# shipped; others are given by path
ENCODERS = {"pfm": "fourierframenet-pfm", "dao-p": "dao-p", "dao-p-diffusion": "dao-p-diffusion"}
PRETRAINED = ("rr", "ebm-nce", "infonce", "ddm")
_ORDER = (*PLAIN, "random", *PRETRAINED, "pfm", "pfm-ridge", "dao-p-diffusion", "dao-p")
_TAUGHT = "was taught formation energies of these crystals"
LABELS_SEEN = {("mp_e_form", "dao-p"): _TAUGHT, ("mp_e_form", "dao-p-diffusion"): _TAUGHT}
READY = "ready"  # the row of the shipped property model


@dataclass(frozen=True)
class Start:
    """What fits start from and how they run: weights by row, device, compiled or not; `keep` takes models."""

    weights: Mapping[str, str]
    device: str | None = None
    compile: bool = False
    keep: Path | None = None


@dataclass(frozen=True)
class Settings:
    """What every fit gets: labels and test crystals at most, crystals shown to a network while it learns.

    The last is the same for all networks and tasks, so more labels mean fewer rounds; the best of the
    rounds on validation counts. shares: of the training labels, in percent (learning curves).
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    shares: tuple[int, ...] = (100,)
    folds: str = "random"
    max_train: int | None = None
    max_test: int | None = None
    seen: int = 100_000
    lr: float = 1e-3


def run(
    root: str | Path,
    tasks: Sequence[str] = tuple(TASKS),
    rows: Sequence[str] = (*PLAIN, "random", "pfm", "pfm-ridge", "dao-p"),
    settings: Settings | None = None,
    *,
    encoders: Mapping[str, str] | None = None,
    out: str | Path = "benchmark-matbench",
    keep: str | Path | None = None,
    device: str | None = None,
    compile: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Mean absolute errors of rows on tasks, as JSON in `out`; stopped, it goes on where it was.

    encoders: row -> weights (path, shipped name), for rows such as "rr" whose weights are not shipped. A row
    "NAME-ridge" puts a ridge regression on the frozen features of NAME, "NAME-frozen" the two-layer head.
    "random" has the network of "pfm" with untrained weights, "ready" is the shipped model of the property,
    which learns no more. keep: a folder for the fitted networks.
    Raises InputError for unknown tasks and rows without weights.
    """
    settings = settings or Settings()
    weights = {**ENCODERS, **(encoders or {})}
    _check(tasks, rows, weights, settings)
    start = Start(weights, device, compile, None if keep is None else Path(keep))
    journal = Journal(Path(out), "results.jsonl")
    note = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(settings).items() if k != "seeds"}
    found = journal.open({**note, "shares": None})
    prints = _fingerprints(found, tasks, rows, weights)
    done = {(r["task"], r["row"], r["seed"], r["share"]) for r in found}
    with ProgressBar(progress, "matbench") as bar:
        bar.add(len(tasks) * len(rows) * len(settings.seeds) * len(settings.shares))
        for name in tasks:
            todo = [
                (row, seed, share)
                for seed in settings.seeds
                for share in settings.shares
                for row in rows
                if (name, _base(row)) not in LABELS_SEEN and (name, row, seed, share) not in done
            ]
            bar.advance(len(rows) * len(settings.seeds) * len(settings.shares) - len(todo))
            for record in _task(root, name, todo, settings, start) if todo else ():
                record["weights"] = prints.get((name, record["row"]), "")
                journal.append([record])
                found.append(record)
                bar.advance(1)
    result = summary(root, found, settings, pick_device(device))
    write_json(Path(out, "result.json"), result)
    _print(result)
    return result


def _check(tasks: Sequence[str], rows: Sequence[str], weights: Mapping[str, str], settings: Settings) -> None:
    for name in tasks:
        if name not in TASKS:
            raise InputError(f"unknown task {name!r}; choose from {', '.join(TASKS)}")
    if READY in rows:
        if bad := [name for name in tasks if not TASKS[name].ready]:
            raise InputError(
                f"no shipped model predicts {bad[0]!r}; leave out the row {READY!r}, or this task"
            )
        if (settings.seeds, settings.shares, settings.folds) != ((0,), (100,), "random"):
            raise InputError(
                f"shipped models were fitted to the training crystals of seed 0: the row {READY!r} is fair "
                "only with --seeds 0 and without --shares or --folds"
            )
    for row in rows:
        base = _base(row)
        if row not in (*PLAIN, READY) and base != "random" and base not in weights:
            raise InputError(f"row {row!r} needs weights: --encoder {base}=FILE; known: {', '.join(_ORDER)}")


def _fingerprints(
    found: Sequence[Mapping[str, Any]],
    tasks: Sequence[str],
    rows: Sequence[str],
    weights: Mapping[str, str],
) -> dict[tuple[str, str], str]:
    """(task, row) -> digest of the weights it starts from; refuses to mix two weights under one name."""
    files = {(name, row): weights.get(_base(row)) for name in tasks for row in rows}
    files |= {(name, READY): TASKS[name].ready for name in tasks if READY in rows}
    digests = {file: fingerprint(load_model(file)) for file in {*files.values()} if file}
    prints = {key: digests[file] for key, file in files.items() if file}
    for record in found:
        key = record["task"], record["row"]
        if key in prints and record["weights"] != prints[key]:
            raise InputError(
                f"the results hold row {record['row']!r} with other weights; give these another name, or "
                "choose another --out"
            )
    return prints


def _task(
    root: str | Path,
    name: str,
    todo: Sequence[tuple[str, int, int]],
    settings: Settings,
    start: Start,
) -> Any:
    """One record for each (row, seed, share)."""
    data = load_task(root, name)
    parts = {seed: _split(data, seed, settings) for seed in {seed for _, seed, _ in todo}}
    used = np.unique(np.concatenate([ids for part in parts.values() for ids in part.values()]))
    cells = pack(data.crystals[used], labels=())[:]
    if any(_sees_cells(row, start) for row, _, _ in todo):
        cells, _ = primitive_cells(cells)  # once for all rows
    place = {int(k): i for i, k in enumerate(used)}
    for row, seed, share in todo:
        ids = {part: np.array([place[int(k)] for k in parts[seed][part]]) for part in parts[seed]}
        keep = max(2, round(len(ids["train"]) * share / 100))
        ids["train"] = np.random.default_rng(seed).permutation(ids["train"])[:keep]
        y, begun = data.y[used], time.perf_counter()
        where = start.keep and start.keep / f"{name}-{row}-{seed}-{share}.safetensors"
        predicted = _predict(row, data.task, cells, y, ids, seed, settings, start, where)
        error = np.abs(predicted - y[ids["test"]])
        yield {
            "task": name,
            "row": row,
            "seed": seed,
            "share": share,
            **{part: len(places) for part, places in ids.items()},
            "mae": float(error.mean()),
            "seconds": time.perf_counter() - begun,
            "errors": [float(f"{e:.4g}") for e in error],
        }


def _split(data: Data, seed: int, settings: Settings) -> dict[str, NDArray[np.int64]]:
    return split(data, seed, settings.folds, settings.max_train, settings.max_test)


def _base(row: str) -> str:
    """The row whose weights a row on frozen features starts from."""
    return row.removesuffix("-ridge").removesuffix("-frozen")


def _sees_cells(row: str, start: Start) -> bool:
    if row in (*PLAIN, READY):
        return False
    base = _base(row)
    return knows_cell(_architecture(start.weights["pfm" if base == "random" else base]))


def _predict(
    row: str,
    task: Task,
    cells: CrystalBatch,
    y: Values,
    ids: Mapping[str, NDArray[np.int64]],
    seed: int,
    settings: Settings,
    start: Start,
    keep: Path | None,
) -> Values:
    """(t,) values of the test crystals by one model, which is written to the file `keep` if it learned."""
    train, val, test = (ids[part] for part in ("train", "val", "test"))
    if row == "mean":
        return np.full(len(test), y[train].mean())
    if row == "magpie-rf":
        from sklearn.ensemble import RandomForestRegressor

        forest = RandomForestRegressor(300, max_features=1 / 3, random_state=seed)
        forest.fit(_magpie(cells, train), y[train])
        return np.asarray(forest.predict(_magpie(cells, test)), np.float64)
    if row == READY:
        ready = PropertyPredictor.load(task.ready, start.device)
        return np.asarray(ready.predict(cells[_ids(test)]), np.float64)
    base = _base(row)
    weights = start.weights
    encoder: str | EncoderConfig = weights[base] if base != "random" else _architecture(weights["pfm"])
    predictor = PropertyPredictor(
        encoder,
        "ridge" if row.endswith("-ridge") else "regression",
        name=task.ready or task.label,
        unit=task.unit,
        primitive=False,
        epochs=math.ceil(settings.seen / len(train)),
        patience=math.ceil(settings.seen / len(train)),
        lr=settings.lr,
        freeze=row.endswith("-frozen"),
        seed=seed,
        compile=start.compile,
        device=start.device,
    )
    predictor.fit(cells[_ids(train)], y[train], (cells[_ids(val)], y[val]))
    if keep is not None:
        keep.parent.mkdir(parents=True, exist_ok=True)
        predictor.save(keep)
    return np.asarray(predictor.predict(cells[_ids(test)]), np.float64)


def _ids(places: NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(places)


def _architecture(weights: str) -> EncoderConfig:
    return load_model(weights).config.encoder


def _magpie(cells: CrystalBatch, places: NDArray[np.int64]) -> Values:
    """(b, 132) Magpie features of the compositions."""
    from collections import Counter

    from pymatgen.core import Composition

    from crystalml.elements import symbol
    from crystalml.metrics.fingerprints import composition_fingerprint

    rows = []
    for one in cells[_ids(places)].split():
        counts = Counter(one.numbers.tolist())
        rows.append(composition_fingerprint(Composition({symbol(z): n for z, n in counts.items()}), False))
    return np.stack(rows)


def summary(
    root: str | Path, records: Sequence[Mapping[str, Any]], settings: Settings, device: torch.device
) -> dict[str, Any]:
    """Means over seeds with 95 % bootstrap intervals over all tested crystals, and what was measured on."""
    tasks: dict[str, Any] = {}
    for name in TASKS:
        mine = [r for r in records if r["task"] == name]
        if not mine:
            continue
        data, cells = load_task(root, name), {}
        tested = {seed: _split(data, seed, settings)["test"] for seed in {r["seed"] for r in mine}}
        for row in sorted({r["row"] for r in mine}, key=_rank):
            for share in sorted({r["share"] for r in mine if r["row"] == row}):
                these = [r for r in mine if r["row"] == row and r["share"] == share]
                gain = _minus_random(these, mine, tested)
                cells[f"{row}@{share}"] = _figures(these, tested) | {"minus_random": gain}
        task = TASKS[name]
        at_hand = len(data)
        tasks[name] = {
            "unit": task.unit,
            "at_hand": at_hand,
            "official": task.size,
            "coverage": None if task.stand_in else at_hand / task.size,
            "paper": dict(task.paper),
            "rows": cells,
        }
    return {
        "benchmark": "matbench",
        "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(settings).items()},
        "tasks": tasks,
        "left_out": [{"task": t, "row": r, "reason": why} for (t, r), why in LABELS_SEEN.items()],
        "environment": environment(device),
    }


def _figures(records: Sequence[Mapping[str, Any]], tested: Mapping[int, NDArray[np.int64]]) -> dict[str, Any]:
    """tested: seed -> crystals; one that several seeds test is drawn once by the bootstrap."""
    errors = np.concatenate([np.asarray(r["errors"]) for r in records])
    maes = [r["mae"] for r in records]
    return {
        "mae": float(np.mean(maes)),
        "interval": bootstrap_mean(errors, np.concatenate([tested[r["seed"]] for r in records])),
        "seeds": maes,
        "train": records[0]["train"],
        "val": records[0]["val"],
        "test": records[0]["test"],
        "seconds": float(np.mean([r["seconds"] for r in records])),
    }


def _minus_random(
    records: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]],
    tested: Mapping[int, NDArray[np.int64]],
) -> dict[str, Any] | None:
    """A row's MAE less that of the untrained start on the same crystals, and its 95 % interval."""
    start = {(r["seed"], r["share"]): np.asarray(r["errors"]) for r in others if r["row"] == "random"}
    shared = [r for r in records if r["row"] != "random" and (r["seed"], r["share"]) in start]
    if not shared:
        return None
    apart = [np.asarray(r["errors"]) - start[r["seed"], r["share"]] for r in shared]
    return {
        "mae": float(np.mean([each.mean() for each in apart])),
        "interval": bootstrap_mean(
            np.concatenate(apart), np.concatenate([tested[r["seed"]] for r in shared])
        ),
        "seeds": len(shared),
    }


def _rank(row: str) -> tuple[int, str]:
    return (_ORDER.index(row), "") if row in _ORDER else (len(_ORDER), row)


def _print(result: Mapping[str, Any]) -> None:
    wins: dict[str, list[bool]] = {}
    for name, task in result["tasks"].items():
        rows = []
        for key, cell in task["rows"].items():
            row, _, share = key.partition("@")
            low, high = cell["interval"]
            gain = cell["minus_random"]
            if gain and share == "100":
                wins.setdefault(row, []).append(gain["mae"] < 0)
            rows.append(
                (
                    row if share == "100" else f"{row} ({share} %)",
                    f"{cell['mae']:.4g} ({low:.4g}-{high:.4g})",
                    "{:+.3g} ({:+.3g} to {:+.3g})".format(gain["mae"], *gain["interval"]) if gain else "",
                    str(len(cell["seeds"])),
                    str(cell["train"]),
                    f"{task['paper'][row]:g}" if share == "100" and row in task["paper"] else "",
                )
            )
        cover = task["coverage"]
        note = f"{task['at_hand']:,} crystals at hand"
        note += f", {cover:.0%} of the task" if cover is not None else "; not the official data set"
        title = f"{name}, MAE in {task['unit'] or 'its own unit'}"
        show(title, ["", "MAE (95 %)", "minus random", "seeds", "labels", "paper"], rows, note)
    if wins:
        tally = [(row, f"{sum(won)} of {len(won)}") for row, won in wins.items()]
        show("tasks with a lower MAE than random initialisation", ["", "tasks"], tally)
