"""Crystal structure prediction: sample the cells of a test set and count the matches (methods §7).

Each target gets the species of its own cell; its geometry is never looked at before the comparison.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pymatgen.core.composition import Composition

from crystalml import recipes
from crystalml.benchmarks.prototypes import plain
from crystalml.benchmarks.report import environment, show, write_json
from crystalml.benchmarks.store import Sample, SampleStore, fingerprint
from crystalml.benchmarks.targets import choose, per_crystal, read_test, to_structure
from crystalml.datasets.arrays import Arrays
from crystalml.device import pick_device
from crystalml.errors import InputError, UnsupportedError
from crystalml.guidance import EnergyGuidance, check_noise
from crystalml.metrics.match import TargetMatches, compare, score
from crystalml.metrics.validity import is_valid_composition
from crystalml.models.model import CrystalModel
from crystalml.noise.rng import stable_seed
from crystalml.predict import pack, pair_budget
from crystalml.progress import ProgressBar
from crystalml.sample.base import Guide, Sampler
from crystalml.sample.solvers import Solver
from crystalml.sample.solvers import solver as make
from crystalml.sample.template import template
from crystalml.weights import load_model

ModelLike = str | Path | CrystalModel


def run(
    test: str | Path,
    model: ModelLike = "dao-g",
    *,
    shots: Sequence[int] = (1, 20),
    n: int | None = None,
    seed: int = 0,
    benchmark: str | None = None,
    solver: Solver = "pc",
    steps: int | None = None,
    guidance: float = 0.0,
    energy_model: ModelLike = "dao-p-diffusion",
    order: Literal["code", "paper"] = "code",
    gated: bool = True,
    out: str | Path = "benchmark-csp",
    device: str | None = None,
    processes: int = 1,
    max_pairs: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Match rate and RMSE of `max(shots)` samples a target, on n targets chosen by the seed (None: all).

    benchmark: see `read_test`. solver, steps: see `sample.solvers`. Samples go to `out`/samples.jsonl; the
    same call goes on where it was stopped, and a larger n or more shots draw only what is missing. A sample
    depends on (seed, target, shot) alone. Writes every comparison to `out`/matches.jsonl and the figures to
    `out`/result.json, and returns the latter. gated=False leaves out the validity gate, which needs SMACT.
    """
    if gated:
        is_valid_composition(Composition("NaCl"))  # a missing SMACT shows before hours of sampling
    if not shots or min(shots) < 1:
        raise InputError(f"shots must be at least 1 each, not {list(shots)}")
    where = pick_device(device)
    job = prepare(model, energy_model if guidance else None, where, (solver, steps, order), guidance)
    targets = choose(read_test(test, benchmark), n, seed)
    settings = {"test": Path(test).name, "rows": benchmark or "all", "seed": seed, **job.settings}
    rows = collect(targets, job, max(shots), settings, Path(out), max_pairs, progress)
    seconds = sum(sample.seconds for row in rows for sample in row)
    result = {
        "benchmark": "csp",
        **settings,
        "targets": len(targets),
        "shots": list(shots),
        **_evaluate(targets, rows, shots, gated, processes, progress, Path(out)),
        "sampling_seconds": seconds,
        "structures_per_second": len(targets) * max(shots) / seconds,
        "evaluations_per_sample": job.sampler.evaluations,
        "environment": environment(where),
    }
    write_json(Path(out, "result.json"), result)
    _print(result)
    return result


@dataclass(frozen=True)
class Job:
    """A model ready to sample and the settings that decide what it draws."""

    model: CrystalModel
    sampler: Sampler
    guide: Guide | None
    settings: dict[str, Any]


def prepare(
    model: ModelLike,
    energy_model: ModelLike | None,
    device: torch.device,
    how: tuple[Solver, int | None, Literal["code", "paper"]],
    guidance: float,
) -> Job:
    """The model loaded and its sampler made; `how` is solver, steps and order."""
    denoiser = load(model, device)
    about = named(denoiser, model)
    if not denoiser.has_noise:
        raise UnsupportedError(
            f"{about['model']} cannot generate: it has no noise head; use one such as 'dao-g'"
        )
    sampler = make(how[0], recipes.noise_for(denoiser), how[1], order=how[2])
    settings = {
        **about,
        "solver": how[0],
        "steps": len(sampler.levels()) - 1,
        "order": how[2],
        "guidance": guidance,
    }
    if energy_model is None:
        return Job(denoiser, sampler, None, settings)
    energy = load(energy_model, device)
    check_noise(energy, denoiser)
    settings["energy_weights"] = fingerprint(energy)
    return Job(denoiser, sampler, EnergyGuidance(energy, guidance), settings)


def collect(
    targets: Arrays,
    job: Job,
    shots: int,
    settings: dict[str, Any],
    out: Path,
    max_pairs: int | None = None,
    progress: bool = True,
) -> list[list[Sample]]:
    """The samples of each target by settings["seed"]; those in `out`/samples.jsonl are not drawn again."""
    store = SampleStore(out)
    drawn = store.open(settings)
    wanted = [(target, shot) for target in range(len(targets)) for shot in range(shots)]
    missing = [(i, shot) for i, shot in wanted if (targets.ids[i], shot) not in drawn]
    budget = max_pairs or pair_budget(next(job.model.parameters()).device, gradient=job.guide is not None)
    for sample in _draw(targets, missing, job, settings["seed"], budget, store, progress):
        drawn[sample.id, sample.shot] = sample
    return [[drawn[name, shot] for shot in range(shots)] for name in targets.ids]


def _draw(
    targets: Arrays,
    missing: Sequence[tuple[int, int]],
    job: Job,
    seed: int,
    budget: int,
    store: SampleStore,
    progress: bool,
) -> list[Sample]:
    """Sample what is missing, batch by batch of similar size, and store each batch at once."""
    weight = next(job.model.parameters())
    getattr(job.sampler.noise.frac, "norms", None)  # a table made once; not part of the sampling time
    species = per_crystal(targets, targets.numbers)
    counts = torch.as_tensor(targets.num_atoms[[i for i, _ in missing]])
    done: list[Sample] = []
    with ProgressBar(progress and bool(missing), "sampling") as bar:
        bar.add(len(missing) * len(job.sampler.levels()))
        for group in pack(counts, budget) if missing else []:
            chosen = [missing[k] for k in group.tolist()]
            start = time.perf_counter()
            blank = template([species[i].tolist() for i, _ in chosen], weight.device, weight.dtype)
            seeds = [stable_seed(seed, targets.ids[i], shot) for i, shot in chosen]
            keys = torch.tensor(seeds, device=weight.device)
            last = blank
            for state in job.sampler.trajectory(job.model.denoise, blank, keys, job.guide):
                last = state
                bar.advance(len(chosen))
            parts = last.to("cpu", torch.float64).split()
            share = (time.perf_counter() - start) / len(chosen)
            batch = [
                Sample(targets.ids[i], shot, share, _rounded(part.lattice), _rounded(part.frac))
                for (i, shot), part in zip(chosen, parts, strict=True)
            ]
            store.append(batch)
            done += batch
    return done


def _evaluate(
    targets: Arrays,
    rows: list[list[Sample]],
    shots: Sequence[int],
    gated: bool,
    processes: int,
    progress: bool,
    out: Path,
) -> dict[str, Any]:
    numbers, fracs = per_crystal(targets, targets.numbers), per_crystal(targets, targets.frac)
    table: list[TargetMatches] = []
    failed = 0
    with ProgressBar(progress, "matching") as bar:
        bar.add(len(targets))
        for part in _parts(len(targets)):
            truths = [to_structure(numbers[i], targets.lattice[i], fracs[i]) for i in part]
            samples = [
                [
                    to_structure(numbers[i], np.reshape(s.lattice, (3, 3)), np.reshape(s.frac, (-1, 3)))
                    for s in rows[i]
                ]
                for i in part
            ]
            failed += sum(sample is None for row in samples for sample in row)
            known = [truth for truth in truths if truth is not None]  # all: the reader refuses flat cells
            table += compare(samples, known, gated, processes, progress=lambda _: bar.advance(1))
    scores = [score(table, k, gate) for gate in ([False, True] if gated else [False]) for k in shots]
    matches = [{"id": name, **asdict(row)} for name, row in zip(targets.ids, table, strict=True)]
    (out / "matches.jsonl").write_text("".join(json.dumps(match) + "\n" for match in matches))
    return {
        "scores": [plain(item) for item in scores],
        "timeouts": sum(row.timeouts for row in table),
        "failed_samples": failed,
    }


def _parts(count: int, size: int = 500) -> list[range]:
    """Targets a part at a time: pymatgen structures of a whole 20-shot run would fill the memory."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _print(result: dict[str, Any]) -> None:
    def percent(item: dict[str, Any]) -> str:
        low, high = item["match_rate_interval"]
        return f"{100 * item['match_rate']:.2f} ({100 * low:.1f}-{100 * high:.1f})"

    rows = [
        (
            f"{item['shots']}-shot{', gated' if item['gated'] else ''}",
            percent(item),
            "-" if item["rmse"] is None else f"{item['rmse']:.4f}",
            f"{item['matched']}/{item['total']}",
        )
        for item in result["scores"]
    ]
    show(
        f"{result['model']} on {result['test']}",
        ["", "match rate % (95 %)", "RMSE", "matched"],
        rows,
        f"{result['steps']} steps, {result['structures_per_second']:.3g} structures/s, "
        f"{result['timeouts']} comparisons out of time, {result['failed_samples']} failed samples",
    )


def load(model: ModelLike, device: torch.device) -> CrystalModel:
    """A model given by name, path or itself, on the device and in evaluation mode."""
    loaded = model if isinstance(model, CrystalModel) else load_model(model, device=device)
    return loaded.to(device).eval()


def named(loaded: CrystalModel, given: ModelLike) -> dict[str, str]:
    """How a result names the model that `load` made of what was given, and its weights."""
    name = loaded.card.get("name") or ("custom" if loaded is given else str(given))
    return {"model": name, "weights": fingerprint(loaded)}


def _rounded(values: torch.Tensor) -> list[float]:
    """Six decimals: 1e-6 Angstrom, at a third of the size on disk. NaN stays NaN."""
    return [x if math.isnan(x) else round(x, 6) for x in values.flatten().tolist()]
