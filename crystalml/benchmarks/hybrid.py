"""Structure prediction by prototypes, refined and ranked: match rate and RMSE on the cells of a test set."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pymatgen.core import Composition, Structure

from crystalml.benchmarks.prototypes import plain, print_scores
from crystalml.benchmarks.report import environment
from crystalml.benchmarks.targets import choose, read_test, structures
from crystalml.compiled import compile_potential
from crystalml.device import pick_device
from crystalml.hybrid.predict import POOL, Denoising, Hybrid, Request
from crystalml.hybrid.rank import FEATURES, Ranker, features, features_after
from crystalml.hybrid.refine import Judged
from crystalml.journal import Journal, write_json
from crystalml.metrics.match import TargetMatches, compare, score
from crystalml.metrics.validity import is_valid_composition
from crystalml.predict import Predictor
from crystalml.progress import ProgressBar
from crystalml.prototypes import PrototypeAtlas
from crystalml.recipes import noise_for
from crystalml.request import Cell
from crystalml.sample.solvers import Solver, solver
from crystalml.weights import load_model
from crystalml.weights.registry import fingerprint

PART = 16  # targets at a time: enough proposals for the networks' batches, and little is lost when killed


@dataclass(frozen=True)
class Setup:
    """What refines the proposals: `potential` (None: chemistry alone) ranks and relaxes them, see Hybrid.

    noise_level: of partial noising, by `model` with `solver` and `steps`; 0 is none. compile: the potential,
    for speed.
    """

    potential: str | Path | None = "dao-p"
    ranker: str | Path | None = None
    pool: int = POOL
    relax_steps: int = 15
    noise_level: float = 0.0
    model: str | Path = "dao-g"
    solver: Solver = "heun"
    steps: int = 5
    compile: bool = False

    def build(self, atlas: PrototypeAtlas, device: torch.device, seed: int) -> tuple[Hybrid, dict[str, Any]]:
        """The pipeline, and settings that decide what it says."""
        settings = {key: None if value is None else str(value) for key, value in asdict(self).items()}
        del settings["compile"]  # decides nothing but the time
        potential, denoising = None, None
        if self.potential is not None:
            model = load_model(self.potential, device=device).eval()
            if self.compile:
                model = compile_potential(model, device=str(device))
            potential, settings["potential_weights"] = Predictor(model), fingerprint(model)
        if self.noise_level:
            denoiser = load_model(self.model, device=device).eval()
            noise = noise_for(denoiser)
            start = max(1, round(self.noise_level * noise.num_steps))
            denoising = Denoising(denoiser, solver(self.solver, noise, self.steps, start), seed)
            settings["denoiser_weights"] = fingerprint(denoiser)
        ranker = None if self.ranker is None else Ranker.load(self.ranker)
        settings["ranker"] = "by score" if potential is None else (ranker or Ranker.default()).name
        steps = self.relax_steps
        return Hybrid(atlas, potential, ranker, self.pool, steps, denoising=denoising), settings


def run(
    test: str | Path,
    setup: Setup | None = None,
    atlas: PrototypeAtlas | None = None,
    *,
    benchmark: str | None = None,
    shots: Sequence[int] = (1, 5, 20),
    n: int | None = None,
    seed: int = 0,
    same_formula: bool = True,
    gated: bool = False,
    table: bool = False,
    out: str | Path = "benchmark-hybrid",
    device: str | None = None,
    processes: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Match rate and RMSE of the max(shots) likeliest structures a target, on n targets chosen by the seed.

    A target gives the composition of its cell and nothing else. Stopped, the same call goes on; a larger n
    does only what is missing. benchmark, same_formula: as in `benchmarks.prototypes`. table=True writes the
    features of all proposals and how each compares with the target to `out`/proposals.jsonl, what
    `crystalml fit-ranker` reads; take validation crystals for it. Writes `out`/matches.jsonl and
    `out`/result.json, and returns the latter.
    """
    if gated:
        is_valid_composition(Composition("NaCl"))  # a missing SMACT shows before the work, not after it
    where = pick_device(device)
    targets = choose(read_test(test, benchmark), n, seed)
    source = atlas or PrototypeAtlas.default()
    hybrid, settings = (setup or Setup()).build(source, where, seed)
    settings |= {
        "test": Path(test).name, "rows": benchmark or "all", "seed": str(seed), "shots": max(shots),
        "same_formula": same_formula, "gated": gated, "table": table, "prototypes": len(source),
    }  # fmt: skip
    journal, notes = Journal(Path(out), "matches.jsonl"), Journal(Path(out), "proposals.jsonl")
    done = {row["id"]: row for row in journal.open(settings)}
    missing = [i for i, name in enumerate(targets.ids) if name not in done]
    with ProgressBar(progress and bool(missing), "hybrid") as bar:
        bar.add(len(missing))
        for start in range(0, len(missing), PART):
            part = targets[missing[start : start + PART]]
            truths = structures(part)
            begin = time.perf_counter()
            requests = [
                Request([Cell(truth.composition, 1).content], same_formula=same_formula) for truth in truths
            ]
            judged = hybrid.judged([hybrid.propose(r, max(hybrid.pool, *shots)) for r in requests])
            ranked = [hybrid.ranked(row) for row in judged]
            relaxed = hybrid.relaxed(ranked, max(shots))
            answers = hybrid.answers(relaxed, ranked, max(shots))
            seconds = (time.perf_counter() - begin) / len(truths)
            rows = list(_matches(part.ids, answers, truths, max(shots), gated, processes))
            if table:
                notes.append(_proposals(part.ids, judged, relaxed, truths, processes))
            journal.append({**row, "seconds": seconds} for row in rows)
            done |= {row["id"]: {**row, "seconds": seconds} for row in rows}
            bar.advance(len(truths))
    return _result([done[name] for name in targets.ids], settings, list(shots), gated, Path(out), where)


def _matches(
    ids: Sequence[str],
    answers: Sequence[Sequence[Structure]],
    truths: Sequence[Structure],
    shots: int,
    gated: bool,
    processes: int,
) -> Iterator[dict[str, Any]]:
    padded = [[*row, *[None] * (shots - len(row))] for row in answers]
    for name, row in zip(ids, compare(padded, truths, gated, processes), strict=True):
        yield {"id": name, **asdict(row)}


def _after(judged: Sequence[Judged], ends: Sequence[Structure]) -> dict[str, Any]:
    """What relaxation tells of the likeliest proposals: their places among all, and features but log P."""
    place = {item.structure.properties["proposal"]: k for k, item in enumerate(judged)}
    told = features_after(ends, np.zeros(len(ends)))[:, 1:].tolist() if ends else []
    return {
        "proposals": [place[end.properties["proposal"]] for end in ends],
        "features": [[round(v, 5) for v in x] for x in told],
    }


def _proposals(
    ids: Sequence[str],
    judged: Sequence[Sequence[Judged]],
    relaxed: Sequence[Sequence[Structure]],
    truths: Sequence[Structure],
    processes: int,
) -> Iterator[dict[str, Any]]:
    """Per target the features of its proposals and their rms to it, before and after relaxation."""
    structures = [[item.structure for item in row] for row in judged]
    matches = compare(structures, truths, False, processes)
    after = compare(relaxed, truths, False, processes)
    for name, row, match, ends, end in zip(ids, judged, matches, relaxed, after, strict=True):
        yield {
            "id": name,
            "features": [[round(v, 5) for v in x] for x in features(row).tolist()] if row else [],
            "names": list(FEATURES),
            "rms": match.rms,
            "after": {**_after(row, ends), "rms": end.rms},
        }


def _result(
    rows: list[dict[str, Any]],
    settings: dict[str, Any],
    shots: list[int],
    gated: bool,
    out: Path,
    device: torch.device,
) -> dict[str, Any]:
    fields = ("formula", "rms", "valid", "target_valid", "timeouts")
    found = [TargetMatches(**{key: row[key] for key in fields}) for row in rows]
    scores = [score(found, k, gate) for gate in ([False, True] if gated else [False]) for k in shots]
    seconds = sum(row["seconds"] for row in rows)
    result = {
        "benchmark": "hybrid",
        **settings,
        "targets": len(rows),
        "scores": [plain(item) for item in scores],
        "timeouts": sum(row["timeouts"] for row in rows),
        "seconds_per_target": seconds / len(rows),
        "environment": environment(device),
    }
    write_json(out / "result.json", result)
    print_scores(
        f"hybrid on {settings['test']} ({settings['rows']})",
        result["scores"],
        f"potential {settings['potential']}, {seconds / len(rows):.2g} s a target",
    )
    return result
