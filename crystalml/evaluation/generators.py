"""Generators side by side: one crystal for each composition of a test set, judged by the same call (GemsDiff,
Tables 2 and 3).

A target gives the atoms of its cell and nothing else; all samples count, those that are no crystals included.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from crystalml.benchmarks import csp
from crystalml.benchmarks.report import environment, show
from crystalml.benchmarks.store import Sample
from crystalml.benchmarks.targets import choose, per_crystal, read_test, structures
from crystalml.datasets.arrays import Arrays
from crystalml.device import pick_device
from crystalml.embedders import load_embedder
from crystalml.errors import InputError
from crystalml.evaluation.result import Evaluation, Metric, plain_data
from crystalml.evaluation.run import evaluate
from crystalml.journal import write_json
from crystalml.progress import ProgressBar
from crystalml.prototypes import substitute
from crystalml.weights import DEFAULT_POTENTIAL

GENERATORS = ("gemsdiff", "dao-g", "diffcsp", "prototypes")
PROTOTYPES = "prototypes"  # the likeliest of the shipped atlas: no network
GROUPS = ("validity", "distribution", "energy", "frechet", "match")
FIGURES = {
    "valid_structure": "valid %",
    "density_wasserstein": "density, W1",
    "energy_wasserstein": "energy, W1",
    "energy_valid_wasserstein": "of valid ones",
    "frechet": "Frechet",
    "match_rate_1": "match %",
    "rmse_1": "RMSE",
}
Array = NDArray[Any]


@dataclass(frozen=True)
class Drawn:
    """A sample for each target, which it names, and what drawing them took."""

    samples: list[Atoms]
    seconds: float
    settings: dict[str, Any]


def run(
    test: str | Path,
    generators: Sequence[str] = GENERATORS,
    *,
    benchmark: str | None = None,
    n: int | None = None,
    seed: int = 0,
    repeats: int = 1,
    steps: int | None = None,
    energy_model: str = DEFAULT_POTENTIAL,
    embedder: Any = None,
    out: str | Path = "benchmark-generators",
    device: str | None = None,
    processes: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Validity, distances of density, energy and features, match rate and speed of each generator.

    generators: shipped names, paths or hf:// addresses of diffusion models, sampled by the published sampler
    of each (steps: see `sample.solvers`), and "prototypes", the substitution baseline. n targets are chosen
    by the seed, None takes all; networks are sampled by as many seeds as `repeats`, this one and those after
    it, and figures are means with standard deviations. energy_model, embedder: see `evaluate`. Each generator
    has a folder in `out` with samples, table and report, further repeats one in it; stopped, the same call
    goes on, and a larger n or more repeats draw what is missing. Writes `out`/result.json and returns it.
    """
    _check(generators, repeats)
    where, folder = pick_device(device), Path(out)
    chosen = load_embedder(embedder, str(where))  # before hours of sampling
    targets = choose(read_test(test, benchmark), n, seed)
    about = {"test": Path(test).name, "rows": benchmark or "all"}
    judge = partial(
        evaluate, reference=targets, metrics=GROUPS, out=folder, shots=(1,), energy_model=energy_model,
        embedder=chosen, processes=processes, seed=seed, device=device, progress=progress,
    )  # fmt: skip
    rows = []
    for name in generators:
        found = []
        for repeat in range(1 if name == PROTOTYPES else repeats):
            own = folder / name.strip("/").replace("/", "_") / (f"repeat-{repeat}" if repeat else "")
            if name == PROTOTYPES:
                drawn = _substituted(targets, progress)
            else:
                job = csp.prepare(name, None, where, ("pc", steps, "code"), 0.0)
                drawn = _diffused(targets, job, {**about, "seed": seed + repeat}, own, progress)
            verdict = judge(drawn.samples)
            verdict.save(own)
            found.append((drawn, verdict))
        rows.append(_row(name, found))
    result = {
        "benchmark": "generators",
        **about,
        "seed": seed,
        "repeats": repeats,
        "targets": len(targets),
        **_shared(rows, chosen.name),
        "environment": environment(where),
    }
    write_json(folder / "result.json", result)
    _print(result)
    return result


def _check(generators: Sequence[str], repeats: int) -> None:
    if not generators or len(set(generators)) < len(generators):
        raise InputError(f"give each generator once, not {', '.join(generators) or 'none'}")
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, not {repeats}")


def _shared(rows: list[dict[str, Any]], embedder: str) -> dict[str, Any]:
    floors = {key: row["floor"] for key, row in rows[0]["figures"].items() if row["floor"] is not None}
    models = {"energy_model": rows[0]["energy_model"], "embedder": embedder}
    return {**models, "floors": floors, "rows": rows}


def _diffused(targets: Arrays, job: csp.Job, about: dict[str, Any], out: Path, progress: bool) -> Drawn:
    rows = csp.collect(targets, job, 1, {**about, **job.settings}, out, progress=progress)
    settings = {**job.settings, "evaluations": job.sampler.evaluations}
    return Drawn(samples_as_atoms(targets, rows), sum(row[0].seconds for row in rows), settings)


def _substituted(targets: Arrays, progress: bool) -> Drawn:
    found, seconds = [], 0.0
    with ProgressBar(progress, PROTOTYPES) as bar:
        bar.add(len(targets))
        for name, truth in zip(targets.ids, structures(targets), strict=True):
            start = time.perf_counter()
            first = substitute(truth.composition, 1, warn=False)
            seconds += time.perf_counter() - start
            crystal = first[0] if first else truth
            # What is missing has a cell of NaN: it stays in the table and fails every test.
            cell = crystal.lattice.matrix if first else np.full((3, 3), np.nan)
            found.append(_as_atoms(name, np.array(crystal.atomic_numbers), cell, crystal.frac_coords))
            bar.advance(1)
    return Drawn(found, seconds, {"model": PROTOTYPES, "evaluations": 0})


def samples_as_atoms(targets: Arrays, rows: Sequence[Sequence[Sample]]) -> list[Atoms]:
    """The samples of each target, target by target."""
    species = per_crystal(targets, targets.numbers)
    return [
        _as_atoms(name, numbers, np.reshape(sample.lattice, (3, 3)), np.reshape(sample.frac, (-1, 3)))
        for name, numbers, row in zip(targets.ids, species, rows, strict=True)
        for sample in row
    ]


def _as_atoms(target: str, numbers: Array, lattice: Array, frac: Array) -> Atoms:
    """A sample that names its target; what is no crystal stays one, and counts."""
    return Atoms(numbers.astype(int), cell=lattice, scaled_positions=frac, pbc=True, info={"target": target})


def _row(name: str, found: Sequence[tuple[Drawn, Evaluation]]) -> dict[str, Any]:
    """The figures of the first repeat with their intervals, and all repeats' with mean and deviation."""
    drawn, verdict = found[0]
    figures = {key: plain_data(asdict(verdict.metrics[key])) for key in FIGURES if key in verdict.metrics}
    values = {key: [other.metrics[key].value for _, other in found] for key in figures}
    seconds = sum(other.seconds for other, _ in found)
    return {
        "generator": name,
        **drawn.settings,
        "sampling_seconds": seconds,
        "structures_per_second": len(found) * len(drawn.samples) / seconds,
        "energy_model": verdict.settings["energy_model"],
        "unreadable": [v.settings["samples"] - v.settings["readable"] for _, v in found],
        "figures": figures,
        "repeats": plain_data(values),
        "mean": plain_data({key: float(np.mean(v)) for key, v in values.items()}),
        "deviation": plain_data({key: float(np.std(v, ddof=1)) for key, v in values.items() if len(v) > 1}),
    }


def _print(result: dict[str, Any]) -> None:
    def cell(row: dict[str, Any], key: str) -> str:
        figure = row["figures"].get(key)
        if figure is None or row["mean"][key] is None:
            return "-"
        metric = Metric(**figure)
        if key in row["deviation"]:
            return f"{metric.text(row['mean'][key])} ± {metric.text(row['deviation'][key])}"
        interval = metric.range_text().replace(" ", "")
        return f"{metric.text()} ({interval})" if interval else metric.text()

    rows = [(label, *(cell(row, key) for row in result["rows"])) for key, label in FIGURES.items()]
    rows += [
        (key.replace("_", " "), *(f"{row[key]:.4g}" for row in result["rows"]))
        for key in ("evaluations", "sampling_seconds", "structures_per_second")
    ]
    floors = ", ".join(f"{FIGURES[key]} {value:.3g}" for key, value in result["floors"].items())
    many = result["repeats"] > 1
    spread = f"means ± deviations of {result['repeats']} seeds" if many else "95 % intervals"
    show(
        f"one sample for each of {result['targets']:,} compositions of {result['test']} ({spread})",
        ["", *(row["generator"] for row in result["rows"])],
        rows,
        f"energies by {result['energy_model']}, features of {result['embedder']}; "
        f"two halves of the reference: {floors}",
    )
