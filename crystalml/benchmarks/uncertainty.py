"""Coverage of the error bars: how often the true energy lies within them, on data they were not fitted to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from crystalml.benchmarks.csp import ModelLike, load, named
from crystalml.benchmarks.report import environment, show, write_json
from crystalml.benchmarks.targets import read_test
from crystalml.calibrate import Residuals, fit_error_bar, residuals
from crystalml.datasets.arrays import pack
from crystalml.datasets.crysdb import ENERGY
from crystalml.datasets.packed import PackedDataset
from crystalml.device import pick_device
from crystalml.errors import InputError, UnsupportedError
from crystalml.metrics.intervals import bootstrap_mean
from crystalml.models.error_bar import LEVELS, ErrorBar

Array = NDArray[Any]
FIFTHS = ("narrowest", "2nd", "3rd", "4th", "widest")


def run(
    model: ModelLike = "dao-p",
    *,
    val: str | Path | None = None,
    test: str | Path | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Coverage at 68, 90 and 95 % of a potential's error bars, in all, by kind and by width.

    val: a packed set, cut in two by the seed such that frames stay with their parent crystal; bars are fitted
    to one half and measured on the other, so that the model's own calibration plays no part. test: a Parquet
    file with formation energies, for the calibration that the model carries. Intervals: 95 % bootstrap over
    families of one parent. Beside it, a bar of one width for all, the same half's quantile.
    """
    if (val is None) == (test is None):
        raise InputError("give one of val (a packed set to cut in two) and test (a Parquet file)")
    where = pick_device(device)
    loaded = load(model, where)
    source = Path(val if val is not None else test)  # type: ignore[arg-type]  # one of them is given
    constant: float | None = None
    if val is not None:
        data = PackedDataset.load(val)
        data = data.select(torch.nonzero(_label(data, "energy").isfinite())[:, 0])
        found, family = residuals(loaded, data, progress=progress), _families(data)
        fitted = np.isin(family, _half(family, seed))
        bar = fit_error_bar(found.features[fitted], found.error[fitted])
        constant = float(np.quantile(np.abs(found.error[fitted]), LEVELS[1]))
        frames = data.labels.get("off_equilibrium")
        kind = np.zeros(len(data)) if frames is None else frames.numpy()
        found, family, kind = found.select(~fitted), family[~fitted], kind[~fitted]
    else:
        if loaded.error_bar is None:
            raise UnsupportedError("this model was not calibrated: run `crystalml calibrate` first")
        arrays = read_test(source)
        arrays = arrays[np.isfinite(arrays.labels[ENERGY])]
        found = residuals(loaded, pack(arrays, labels=(ENERGY,)), ENERGY, progress)
        bar, fitted = loaded.error_bar, np.zeros(0, bool)
        family, kind = np.arange(len(found)), np.zeros(len(found))
    result = {
        "benchmark": "uncertainty",
        "data": source.name,
        **named(loaded, model),
        "seed": seed,
        "fitted_on": int(fitted.sum()) or "the model's own calibration",
        **_measure(found, bar, family, kind, constant),
        "environment": environment(where),
    }
    if out is not None:
        write_json(Path(out), result)
    _print(result)
    return result


def _label(data: PackedDataset, name: str) -> torch.Tensor:
    if name not in data.labels:
        raise InputError(f"the data have no label {name!r}; there are {', '.join(sorted(data.labels))}")
    return data.labels[name]


def _families(data: PackedDataset) -> Array:
    """(b,) which crystals go together: those of one parent, or where that is not known each by itself."""
    parent = data.labels.get("parent")
    return np.arange(len(data)) if parent is None else parent.numpy()


def _half(family: Array, seed: int) -> Array:
    """Half of the families."""
    names = np.unique(family)
    return np.random.default_rng(seed).permutation(names)[: len(names) // 2]


def _measure(
    found: Residuals, bar: ErrorBar, family: Array, kind: Array, constant: float | None
) -> dict[str, Any]:
    weight = next(bar.buffers())
    features = torch.as_tensor(found.features).to(weight)
    width, error = bar(features).double().cpu().numpy(), np.abs(found.error)
    factors = [bar.factor(level) for level in LEVELS]
    groups = {"all": np.ones(len(found), bool)}
    if len(np.unique(kind)) > 1:
        groups |= {"crystals": kind == 0, "frames": kind == 1}
    fifth = np.argsort(np.argsort(width)) * 5 // len(width)
    groups |= {f"{name} fifth": fifth == k for k, name in enumerate(FIFTHS)}
    return {
        "rank_correlation": float(spearmanr(width, error).statistic),
        "mean_width_90": float(width.mean() * factors[1]),
        "mean_width_90_constant": constant,
        "groups": {
            name: {
                "crystals": int(rows.sum()),
                "mae": float(error[rows].mean()),
                "width_68": float(width[rows].mean()),
                "coverage": [
                    _coverage(error[rows] <= factor * width[rows], family[rows]) for factor in factors
                ],
            }
            for name, rows in groups.items()
            if rows.any()
        },
    }


def _coverage(inside: Array, family: Array) -> dict[str, Any]:
    return {"share": float(inside.mean()), "interval": bootstrap_mean(inside, family)}


def _print(result: dict[str, Any]) -> None:
    def share(part: dict[str, Any]) -> str:
        low, high = part["interval"]
        return f"{100 * part['share']:.1f} ± {50 * (high - low):.1f}"

    flat = result["mean_width_90_constant"]
    show(
        f"{result['model']}: % of {result['data']} within error bars fitted on {result['fitted_on']}",
        ["eV/atom", "crystals", "MAE", "68 % bar", *(f"in {100 * p:.0f} %" for p in LEVELS)],
        [
            (
                name,
                str(group["crystals"]),
                f"{group['mae']:.4f}",
                f"{group['width_68']:.4f}",
                *(share(part) for part in group["coverage"]),
            )
            for name, group in result["groups"].items()
        ],
        f"rank correlation of bar and |error| {result['rank_correlation']:.2f}; mean 90 % bar "
        f"{result['mean_width_90']:.4f} eV/atom" + (f", one width for all {flat:.4f}" if flat else ""),
    )
