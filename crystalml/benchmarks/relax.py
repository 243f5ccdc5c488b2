"""Relaxation of disturbed crystals: do they come back, and how fast, in a batch and one by one?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from pymatgen.core import Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from crystalml.benchmarks.csp import ModelLike, load, named
from crystalml.benchmarks.report import environment, show, write_json
from crystalml.benchmarks.targets import choose
from crystalml.calculators.ase import DaoCalculator
from crystalml.convert import to_structures
from crystalml.datasets.arrays import pack
from crystalml.datasets.crysdb import BENCHMARKS, crysdb
from crystalml.device import pick_device
from crystalml.errors import InputError, UnsupportedError
from crystalml.metrics.intervals import bootstrap_ratio
from crystalml.metrics.match import MatchTolerances, compare
from crystalml.models.model import CrystalModel
from crystalml.noise.rng import stable_seed
from crystalml.predict import Predictor
from crystalml.progress import ProgressBar
from crystalml.relax import Outcome, Relaxation, failed, one_by_one, relax_each
from crystalml.relaxation.settings import OPTIMIZERS, RelaxSettings

TOLERANCES = MatchTolerances(ltol=0.2, stol=0.3, angle_tol=5.0)  # StructureMatcher's own
Results = list[Relaxation[Structure]]


def run(
    root: str | Path,
    model: ModelLike = "dao-p",
    *,
    n: int = 200,
    seed: int = 0,
    rattle: float = 0.1,
    strain: float = 0.03,
    settings: RelaxSettings | None = None,
    subset: str | None = "mp_20_val",
    timed: int = 16,
    repeats: int = 3,
    out: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Disturb n validation crystals of CrysDB (see `disturbed`), relax them, compare with the DFT crystals.

    The model errs and so may the optimiser: the DFT crystals themselves are relaxed, too, to the model's own
    minima. Where a relaxed crystal differs from those, it is the optimiser's doing, or another minimum; where
    those differ from DFT, the model's. A match is one of StructureMatcher with its own tolerances, which
    scales volumes; rms is its displacement over (V/N)^(1/3). Volume errors are |V / V0 - 1|. Shares have 95 %
    bootstrap intervals over crystals.

    Then `timed` of the disturbed crystals are relaxed in a batch and one by one through ASE, with its
    FrechetCellFilter and the same model, and by torch-sim where it is installed: in turns, `repeats` times,
    by either optimiser; 0 leaves that out. subset: "mp_20_val" (PBE geometries),
    "mpts_52_val" or None. Writes `out` (JSON) if given.
    """
    where = pick_device(device)
    loaded = load(model, where)
    _check(loaded)
    chosen = settings or RelaxSettings()
    names, truths = _validation(root, subset, n, seed)
    seeds = [stable_seed(seed, name, 0) for name in names]
    starts = [disturbed(x, rattle, strain, own) for x, own in zip(truths, seeds, strict=True)]
    predictor = Predictor(loaded)
    relaxed, seconds = _relax(starts, predictor, chosen, "relaxing", progress)
    minima, _ = _relax(truths, predictor, chosen, "own minima", progress)
    result = {
        "benchmark": "relax",
        **named(loaded, model),
        "subset": subset or "val",
        "seed": seed,
        "rattle": rattle,
        "strain": strain,
        **asdict(chosen),
        "crystals": len(truths),
        "failures": [item["error"] for item in relaxed if item["error"]],
        "steps_median": median(item["n_steps"] for item in relaxed),
        "seconds": seconds,
        "rows": _table(relaxed, minima, starts, truths),
        "speed": _race(starts[:timed], predictor, chosen, repeats, progress) if timed else [],
        "environment": environment(where),
    }
    if out is not None:
        write_json(Path(out), result)
    _print(result)
    return result


def _check(model: CrystalModel) -> None:
    if not model.is_potential:
        name = model.card.get("name", "this model")
        raise UnsupportedError(f"{name} is no potential: relaxations in a batch need one such as 'dao-p'")


def _validation(root: str | Path, subset: str | None, n: int, seed: int) -> tuple[list[str], list[Structure]]:
    """Ids and DFT crystals of n validation entries of the Materials Project, chosen by the seed."""
    data = crysdb(root, "val", sources=("mp",))
    if subset is not None:
        if subset not in BENCHMARKS[1:]:
            raise InputError(f"subset must be one of {', '.join(BENCHMARKS[1:])}, not {subset!r}")
        data = data[data.labels["benchmark"] == BENCHMARKS.index(subset)]
    data = choose(data, n, seed)
    return data.ids, to_structures(pack(data, labels=())[:])


def disturbed(structure: Structure, rattle: float, strain: float, seed: int) -> Structure:
    """Every Cartesian coordinate moved by N(0, rattle) Angstrom, then L -> L (1 + E), E symmetric, with
    E = (A + A^T) / 2 and N(0, strain) for the entries of A."""
    rng = np.random.default_rng(seed)
    a = strain * rng.standard_normal((3, 3))
    moved = structure.cart_coords + rattle * rng.standard_normal((len(structure), 3))
    frac = moved @ np.linalg.inv(structure.lattice.matrix)
    return Structure(Lattice(structure.lattice.matrix @ (np.eye(3) + (a + a.T) / 2)), structure.species, frac)


def _relax(
    structures: Sequence[Structure], predictor: Predictor, settings: RelaxSettings, label: str, progress: bool
) -> tuple[Results, float]:
    start, found = time.perf_counter(), {}
    with ProgressBar(progress, label) as bar:
        bar.add(len(structures))
        for place, outcome in relax_each(structures, predictor, settings):
            found[place] = outcome
            bar.advance(1)
    return _in_order(found.items(), structures), time.perf_counter() - start


def _in_order(outcomes: Iterable[tuple[int, Outcome[Structure]]], structures: Sequence[Structure]) -> Results:
    found = dict(outcomes)
    return [
        failed(structure, outcome) if isinstance(outcome := found[place], Exception) else outcome
        for place, structure in enumerate(structures)
    ]


def _final(results: Results) -> list[Structure]:
    return [result["final_structure"] for result in results]


def _table(
    relaxed: Results, minima: Results, starts: list[Structure], truths: list[Structure]
) -> list[dict[str, Any]]:
    return [
        _agreement("disturbed / DFT", None, starts, truths),
        _agreement("relaxed / DFT", relaxed, _final(relaxed), truths),
        _agreement("relaxed / own minimum", relaxed, _final(relaxed), _final(minima)),
        _agreement("own minimum / DFT", minima, _final(minima), truths),
    ]


def _agreement(
    name: str, results: Results | None, structures: list[Structure], references: list[Structure]
) -> dict[str, Any]:
    """Shares of all crystals: converged; matching; both. rms over the matching, volumes over all."""
    table = compare([[structure] for structure in structures], references, tolerances=TOLERANCES)
    rms = np.array([np.nan if row.rms[0] is None else row.rms[0] for row in table])
    matched = np.isfinite(rms)
    ended = np.array([True] * len(rms) if results is None else [item["converged"] for item in results])
    volumes = zip(structures, references, strict=True)
    error = np.array([abs(one.volume / other.volume - 1) for one, other in volumes])
    return {
        "what": name,
        "converged": None if results is None else float(ended.mean()),
        "matched": float(matched.mean()),
        "converged_and_matched": float((ended & matched).mean()),
        "interval": bootstrap_ratio(ended & matched, np.ones(len(rms))),
        "rms_median": float(np.median(rms[matched])) if matched.any() else None,
        "volume_error_median": float(np.median(error)),
        "volume_error_mean": float(error.mean()),
    }


# --- speed ------------------------------------------------------------------------------------------------
Work = Callable[[RelaxSettings], tuple[int, int]]
"""Relaxes the crystals; evaluations of single crystals that it took, and how many converged."""


def _race(
    structures: list[Structure], predictor: Predictor, settings: RelaxSettings, repeats: int, progress: bool
) -> list[dict[str, Any]]:
    """Seconds in a batch and one by one, taking turns after one unmeasured evaluation each."""
    weight = next(predictor.model.parameters())
    calculator = DaoCalculator(predictor.model, device=str(weight.device), dtype=weight.dtype)
    works: dict[str, Work] = {
        "batch": lambda asked: _counted(relax_each(structures, predictor, asked), structures),
        "ASE": lambda asked: _counted(one_by_one(structures, calculator, asked), structures),
    }
    if find_spec("torch_sim"):
        works["torch-sim"] = _torch_sim(structures, predictor)
    chosen = {name: replace(settings, optimizer=name, trajectory=False) for name in OPTIMIZERS}
    for work in works.values():
        work(replace(settings, max_steps=1))
    rows: list[dict[str, Any]] = [
        {"how": how, "optimizer": optimizer, "crystals": len(structures), "seconds": []}
        for optimizer in chosen
        for how in works
    ]
    with ProgressBar(progress, "timing") as bar:
        bar.add(repeats * len(rows))
        for _ in range(repeats):
            for row in rows:
                start = time.perf_counter()
                row["evaluations"], row["converged"] = works[row["how"]](chosen[row["optimizer"]])
                row["seconds"].append(time.perf_counter() - start)
                bar.advance(1)
    for row in rows:
        row |= {"seconds_min": min(row["seconds"]), "seconds_median": median(row["seconds"])}
    return rows


def _counted(
    outcomes: Iterable[tuple[int, Outcome[Structure]]], structures: Sequence[Structure]
) -> tuple[int, int]:
    results = _in_order(outcomes, structures)
    return sum(item["n_steps"] + 1 for item in results), sum(item["converged"] for item in results)


def _torch_sim(structures: Sequence[Structure], predictor: Predictor) -> Work:
    """TorchSim's optimizers in its default settings, converged by forces and cell forces as ours."""
    import torch_sim as ts

    from crystalml.calculators.torchsim import DaoModel

    weight = next(predictor.model.parameters())
    model = DaoModel(predictor.model, device=weight.device, dtype=weight.dtype)
    systems = [AseAtomsAdaptor.get_atoms(structure, msonable=False) for structure in structures]
    evaluated = []
    model.register_forward_pre_hook(lambda _, inputs: evaluated.append(inputs[0].n_systems))

    def work(settings: RelaxSettings) -> tuple[int, int]:
        evaluated.clear()
        done = ts.generate_force_convergence_fn(force_tol=settings.fmax, include_cell_forces=True)
        state = ts.optimize(
            systems,
            model,
            optimizer=ts.Optimizer(settings.optimizer),
            convergence_fn=done,
            max_steps=settings.max_steps,
            steps_between_swaps=1,
            init_kwargs={"cell_filter": ts.CellFilter.frechet},
        )
        return sum(evaluated), int(done(state, state.energy).sum())

    return work


def _print(result: dict[str, Any]) -> None:
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    show(
        f"{result['model']}: {result['crystals']} crystals of {result['subset']}, rattled by "
        f"{result['rattle']} A, strained by {100 * result['strain']:.0f} %",
        ["", "converged", "match", "both % (95 %)", "rms", "volume % off", "mean"],
        [
            (
                row["what"],
                percent(row["converged"]),
                percent(row["matched"]),
                f"{percent(row['converged_and_matched'])} ({'-'.join(percent(x) for x in row['interval'])})",
                "-" if row["rms_median"] is None else f"{row['rms_median']:.4f}",
                f"{100 * row['volume_error_median']:.2f}",
                f"{100 * row['volume_error_mean']:.2f}",
            )
            for row in result["rows"]
        ],
        f"{result['optimizer']}, fmax {result['fmax']} eV/A, {result['steps_median']:.0f} steps (median); "
        f"rms and volume errors are medians; all in {result['seconds']:.0f} s, "
        f"{result['crystals'] / result['seconds']:.3g} crystals/s",
    )
    if not result["speed"]:
        return
    slowest = {row["optimizer"]: row["seconds_min"] for row in result["speed"] if row["how"] == "ASE"}
    show(
        f"{result['speed'][0]['crystals']} of them, {len(result['speed'][0]['seconds'])} rounds in turn",
        ["", "seconds, min", "median", "evaluations", "converged", "x ASE"],
        [
            (
                f"{row['how']}: {row['optimizer']}",
                f"{row['seconds_min']:.2f}",
                f"{row['seconds_median']:.2f}",
                row["evaluations"],
                row["converged"],
                f"{slowest[row['optimizer']] / row['seconds_min']:.2f}",
            )
            for row in result["speed"]
        ],
        f"{result['environment']['threads']} threads of {result['environment']['cpu']}"
        + (f", {gpu}" if (gpu := result["environment"]["gpu"]) else ""),
    )
