"""Formation energies of a test set: mean absolute error against its labels."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pymatgen.core.periodic_table import Element

from crystalml.benchmarks.csp import ModelLike, load, named
from crystalml.benchmarks.report import environment, show, write_json
from crystalml.benchmarks.targets import choose, read_test
from crystalml.datasets.arrays import MAX_Z, Arrays, pack
from crystalml.datasets.crysdb import ENERGY
from crystalml.device import pick_device
from crystalml.errors import InputError
from crystalml.metrics.intervals import bootstrap_ratio
from crystalml.predict import Predictor
from crystalml.progress import ProgressBar

CLASSES = ("oxide", "halide", "chalcogenide", "pnictide", "metals only", "other")
ANIONS = {"oxide": (8,), "halide": (9, 17, 35, 53), "chalcogenide": (16, 34, 52), "pnictide": (7, 15, 33)}


def run(
    test: str | Path,
    model: ModelLike = "dao-p",
    *,
    n: int | None = None,
    seed: int = 0,
    label: str = ENERGY,
    out: str | Path | None = None,
    device: str | None = None,
    max_pairs: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """MAE in eV/atom of `Predictor` on n test crystals chosen by the seed (None: all that have the label).

    Interval: 95 % bootstrap over crystals. Also by class: the first of oxide, halide, chalcogenide,
    pnictide, metals only that fits. Writes `out` (JSON) if given and returns its content.
    """
    where = pick_device(device)
    loaded = load(model, where)
    data = read_test(test)
    if label not in data.labels:
        raise InputError(f"{test} has no label {label!r}; it has {', '.join(sorted(data.labels))}")
    data = choose(data[np.isfinite(data.labels[label])], n, seed)
    predicted, seconds = _predict(Predictor(loaded, max_pairs), data, progress)
    error = np.abs(predicted - data.labels[label])
    kind = element_class(data)
    result = {
        "benchmark": "energy",
        "test": Path(test).name,
        "label": label,
        **named(loaded, model),
        "seed": seed,
        **_figures(error),
        "rmse": float(np.sqrt(np.square(error).mean())),
        "mean_signed_error": float((predicted - data.labels[label]).mean()),
        "non_finite": int((~np.isfinite(error)).sum()),
        "by_class": {name: _figures(error[kind == name]) for name in CLASSES if (kind == name).any()},
        "seconds": seconds,
        "structures_per_second": len(data) / seconds,
        "environment": environment(where),
    }
    if out is not None:
        write_json(Path(out), result)
    _print(result)
    return result


def element_class(data: Arrays) -> NDArray[np.str_]:
    """(b,) the first of `CLASSES` that fits each crystal."""
    present = np.zeros((len(data), MAX_Z + 1), bool)
    present[data.index, data.numbers.astype(np.int64)] = True
    metals = np.array([False] + [Element.from_Z(z).is_metal for z in range(1, MAX_Z + 1)])
    tests = [present[:, list(anions)].any(axis=1) for anions in ANIONS.values()]
    tests.append(~present[:, ~metals].any(axis=1))
    return np.select(tests, CLASSES[:-1], CLASSES[-1])


def _predict(predictor: Predictor, data: Arrays, progress: bool) -> tuple[NDArray[np.float64], float]:
    """Predicted eV/atom in the order of the data, and the seconds it took."""
    packed = pack(data, labels=())
    order = torch.as_tensor(np.argsort(-data.num_atoms, kind="stable"))
    energies = torch.full((len(data),), torch.nan, dtype=torch.float64)
    start = time.perf_counter()
    with ProgressBar(progress, "predicting") as bar:
        bar.add(len(data))
        for ids in order.split(512):
            found = predictor(packed[ids], forces=False)["energy_per_atom"]
            energies[ids] = found.to("cpu", torch.float64)
            bar.advance(len(ids))
    return energies.numpy(), time.perf_counter() - start


def _figures(error: NDArray[np.float64]) -> dict[str, Any]:
    return {
        "crystals": len(error),
        "mae": float(error.mean()),
        "mae_interval": bootstrap_ratio(error, np.ones(len(error))),
        "median": float(np.median(error)),
    }


def _print(result: dict[str, Any]) -> None:
    def row(name: str, figures: dict[str, Any]) -> tuple[str, ...]:
        low, high = figures["mae_interval"]
        return (
            name,
            f"{figures['mae']:.4f} ({low:.4f}-{high:.4f})",
            f"{figures['median']:.4f}",
            str(figures["crystals"]),
        )

    show(
        f"{result['model']}: {result['label']} on {result['test']}",
        ["", "MAE eV/atom (95 %)", "median", "crystals"],
        [row("all", result), *(row(name, part) for name, part in result["by_class"].items())],
        f"{result['structures_per_second']:.3g} structures/s",
    )
