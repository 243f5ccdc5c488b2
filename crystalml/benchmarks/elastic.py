"""Elastic moduli of a potential against DFT: how good its second derivatives are."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from crystalml.benchmarks.csp import ModelLike, load, named
from crystalml.benchmarks.report import environment, show, write_json
from crystalml.benchmarks.targets import choose, structures
from crystalml.calculators.ase import DaoCalculator
from crystalml.datasets.arrays import formulas
from crystalml.datasets.moduli import held_out, moduli
from crystalml.device import pick_device
from crystalml.errors import InputError, UnsupportedError
from crystalml.metrics.intervals import bootstrap_ratio
from crystalml.progress import ProgressBar

MODULI = {"K": "bulk_modulus", "G": "shear_modulus"}
FMAX = 0.01  # eV/Angstrom
NORMAL, SHEAR = (-0.01, 0.01), (-0.02, 0.02)
LOWEST = 1.0  # GPa: what a modulus at or below zero counts as, so that its logarithm exists


def run(
    root: str | Path,
    model: ModelLike = "dao-p",
    *,
    n: int = 100,
    max_atoms: int = 8,
    seed: int = 0,
    out: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Bulk and shear moduli (Voigt-Reuss-Hill, GPa) of n crystals by matcalc, against DFT's (MatBench).

    They are of the fifth of formulas held out of training (`datasets.moduli`). Cells of at most max_atoms,
    relaxed by the model and strained by 1 % (normal) and 2 % (shear), atoms relaxed in each. Cubic crystals
    and others are counted apart, too. A crystal is stable if its elastic tensor has positive eigenvalues
    only. A modulus below 1 GPa counts as 1 GPa. Writes `out` (JSON) if given and returns its content.
    """
    where = pick_device(device)
    loaded = load(model, where)
    engine = _engine(DaoCalculator(loaded, device=str(where), dtype="float64"))
    crystals, truth = _targets(Path(root), n, max_atoms, seed)
    start = time.perf_counter()
    found = np.full((len(crystals), 3), np.nan)
    with ProgressBar(progress, "straining") as bar:
        bar.add(len(crystals))
        for row, crystal in zip(found, crystals, strict=True):
            row[:] = _moduli(engine, crystal)
            bar.advance(1)
    done = np.isfinite(found).all(1)
    cubic = np.array([crystal.get_space_group_info(symprec=0.01)[1] >= 195 for crystal in crystals])
    groups = {"": done, " cubic": done & cubic, " other": done & ~cubic}
    result = {
        "benchmark": "elastic",
        **named(loaded, model),
        "crystals": len(crystals),
        "failed": int((~done).sum()),
        "stable": _mean(found[done, 2] > 0),
        "moduli": {
            name + group: _scores(np.maximum(found[rows, k], LOWEST), truth[rows, k])
            for k, name in enumerate(MODULI)
            for group, rows in groups.items()
            if rows.any()
        },
        "max_atoms": max_atoms,
        "seed": seed,
        "seconds": time.perf_counter() - start,
        "environment": environment(where),
    }
    if out is not None:
        write_json(Path(out), result)
    _print(result)
    return result


def _engine(calculator: DaoCalculator) -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # matcalc lists models of a hub on import; none is needed
    try:
        from matcalc import ElasticityCalc
    except ImportError as error:
        raise UnsupportedError(
            'elastic constants need matcalc: pip install "crystalml-dao[properties]"'
        ) from error
    return ElasticityCalc(
        calculator, fmax=FMAX, norm_strains=NORMAL, shear_strains=SHEAR, relax_deformed_structures=True,
        relax_calc_kwargs={"max_steps": 200}, units_GPa=True,
    )  # fmt: skip


def _targets(root: Path, n: int, max_atoms: int, seed: int) -> tuple[list[Structure], NDArray[Any]]:
    """Crystals of formulas whose moduli no potential learns, and their (n, 2) K and G in GPa."""
    data = moduli(root)
    data = data[data.num_atoms <= max_atoms]
    data = data[held_out(formulas(data))]
    if len(data) == 0:
        raise InputError(f"no held out crystal with at most {max_atoms} atoms has both moduli")
    data = choose(data, min(n, len(data)), seed)
    return structures(data), np.stack([data.labels[name] for name in MODULI.values()], 1).astype(float)


def _moduli(engine: Any, crystal: Structure) -> tuple[float, float, float]:
    """K, G in GPa and the least eigenvalue of the elastic tensor; NaN where matcalc gives up."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = engine.calc(crystal)
    except (ValueError, RuntimeError, np.linalg.LinAlgError):  # a relaxation that leads nowhere
        return (np.nan,) * 3
    tensor = np.asarray(answer["elastic_tensor"].voigt)
    least = float(np.linalg.eigvalsh((tensor + tensor.T) / 2)[0])
    return float(answer["bulk_modulus_vrh"]), float(answer["shear_modulus_vrh"]), least


def _mean(values: NDArray[Any]) -> dict[str, Any]:
    values = np.asarray(values, float)
    return {"mean": float(values.mean()), "interval": list(bootstrap_ratio(values, np.ones(len(values))))}


def _scores(found: NDArray[Any], truth: NDArray[Any]) -> dict[str, Any]:
    ratio = found / truth
    return {
        "crystals": len(truth),
        "log10_mae": _mean(np.abs(np.log10(ratio))),
        "mae_gpa": _mean(np.abs(found - truth)),
        "median_ratio": float(np.median(ratio)),
        "within_25_percent": _mean(np.abs(ratio - 1) < 0.25),
    }


def _print(result: dict[str, Any]) -> None:
    def shown(part: dict[str, Any], scale: float = 1.0, digits: int = 3) -> str:
        low, high = (f"{scale * value:.{digits}f}" for value in part["interval"])
        return f"{scale * part['mean']:.{digits}f} ({low}-{high})"

    rows = [
        (
            f"{name} ({part['crystals']})", shown(part["log10_mae"]), shown(part["mae_gpa"], 1, 1),
            f"{part['median_ratio']:.2f}",
            shown(part["within_25_percent"], 100, 0),
        )
        for name, part in result["moduli"].items()
    ]  # fmt: skip
    columns = ["", "MAE log10 (95 %)", "MAE GPa", "median of model / DFT", "within 25 %"]
    done = result["crystals"] - result["failed"]
    note = (
        f"{shown(result['stable'], 100, 0)} % of {done} mechanically stable, "
        f"{result['failed']} failed; {result['seconds'] / result['crystals']:.1f} s a crystal"
    )
    show(f"elastic moduli of {result['model']}", columns, rows, note)
