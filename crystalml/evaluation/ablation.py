"""What each part of a generator's training and sampling is worth: variants on the same targets, as in DAO.

Match rates and RMSE at every number of shots, polymorphs found, and the share of samples that are stable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crystalml.benchmarks import csp
from crystalml.benchmarks.report import environment, show
from crystalml.benchmarks.store import Sample
from crystalml.benchmarks.targets import choose, read_test
from crystalml.device import pick_device
from crystalml.errors import InputError
from crystalml.evaluation.generators import samples_as_atoms
from crystalml.evaluation.result import Evaluation, Metric, plain_data
from crystalml.evaluation.run import evaluate
from crystalml.journal import write_json
from crystalml.metrics.stability import HullTable
from crystalml.models.model import CrystalModel
from crystalml.sample.solvers import Solver
from crystalml.weights import DEFAULT_POTENTIAL

GROUPS = ("validity", "match", "stability")
OTHERS = {"polymorphs": "polymorphs %", "stable_dao": "stable %", "valid_structure": "valid %"}


@dataclass(frozen=True)
class Variant:
    """A row: what it is called, its weights, and the strength of the energy guidance in sampling."""

    name: str
    model: str | Path | CrystalModel
    guidance: float = 0.0

    @staticmethod
    def parse(text: str) -> Variant:
        """'name=model', 'name=model@guidance' or 'model'. Raises InputError for an empty part."""
        name, _, rest = text.rpartition("=")
        model, _, strength = rest.rpartition("@")
        try:
            guidance = float(strength) if model else 0.0
        except ValueError:  # an address hf://owner/repo@revision
            guidance, model = 0.0, ""
        model = model or rest
        if not model or ("=" in text and not name) or not guidance >= 0:
            raise InputError(
                f"{text!r} is no variant such as 'stage I=runs/one/model.safetensors' or '...@10'"
            )
        return Variant(name or text, model, guidance)


def run(
    test: str | Path,
    variants: Sequence[Variant],
    *,
    benchmark: str | None = None,
    shots: Sequence[int] = (1, 20),
    n: int | None = None,
    solver: Solver = "pc",
    steps: int | None = None,
    guide: str | Path | CrystalModel = "dao-p-diffusion",
    energy_model: str | Path | CrystalModel = DEFAULT_POTENTIAL,
    hull: str | Path | HullTable | None = None,
    out: str | Path = "benchmark-ablation",
    seed: int = 0,
    device: str | None = None,
    processes: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Every variant on the same n targets with the same random numbers, a row each.

    Targets, samples and seeds are those of `benchmarks.csp`, and a folder of `out` for each row has its
    samples; stopped, the same call goes on, and more shots or targets draw only what is missing. guide: the
    energies that guidance follows. energy_model, hull: what tells stability, at DAO's 0.08 eV/atom, of all
    samples as they are drawn. Polymorphs are counted among the n targets. Writes `out`/result.json and
    returns it. Raises InputError where a name is given twice.
    """
    _check([variant.name for variant in variants], shots)
    where, folder = pick_device(device), Path(out)
    targets = choose(read_test(test, benchmark), n, seed)
    about = {"test": Path(test).name, "rows": benchmark or "all", "seed": seed}
    rows = []
    for place, variant in enumerate(variants):
        strength = variant.guidance
        job = csp.prepare(
            variant.model, guide if strength else None, where, (solver, steps, "code"), strength
        )
        own = folder / f"row-{place + 1}"
        drawn = csp.collect(targets, job, max(shots), {**about, **job.settings}, own, progress=progress)
        verdict = evaluate(
            samples_as_atoms(targets, drawn), targets, metrics=GROUPS, out=own, shots=shots,
            energy_model=energy_model, hull=hull, processes=processes, seed=seed, device=device,
            progress=progress,
        )  # fmt: skip
        rows.append(_row(variant.name, job.settings, drawn, verdict))
    result = {
        "benchmark": "ablation",
        **about,
        "targets": len(targets),
        "shots": list(shots),
        "steps": rows[0]["steps"],
        "energy_model": rows[0]["energy_model"],
        "rows": rows,
        "environment": environment(where),
    }
    write_json(folder / "result.json", result)
    _print(result)
    return result


def _row(
    name: str, settings: dict[str, Any], drawn: list[list[Sample]], verdict: Evaluation
) -> dict[str, Any]:
    seconds = [sample.seconds for row in drawn for sample in row]
    return {
        "name": name,
        **settings,
        "energy_model": verdict.settings["energy_model"],
        "structures_per_second": len(seconds) / sum(seconds),
        "figures": {key: plain_data(asdict(metric)) for key, metric in verdict.metrics.items()},
    }


def _check(names: Sequence[str], shots: Sequence[int]) -> None:
    if not names or len(set(names)) < len(names):
        raise InputError(f"give each variant a name of its own, not {', '.join(names) or 'none'}")
    if not shots or min(shots) < 1:
        raise InputError(f"shots must be at least 1 each, not {list(shots)}")


def _print(result: dict[str, Any]) -> None:
    columns: dict[str, str] = {}
    for shot in result["shots"]:
        columns |= {f"match_rate_{shot}": f"match %, {shot}", f"rmse_{shot}": f"RMSE, {shot}"}
    columns |= OTHERS
    columns = {key: name for key, name in columns.items() if any(key in r["figures"] for r in result["rows"])}

    def cell(figure: dict[str, Any] | None) -> str:
        if figure is None or figure["value"] is None:
            return "-"
        metric = Metric(**figure)
        span = f" ({metric.range_text()})" if metric.is_rate and metric.range_text() else ""
        return metric.text() + span

    rows = [
        (row["name"], *(cell(row["figures"].get(key)) for key in columns), row["guidance"])
        for row in result["rows"]
    ]
    show(
        f"{result['targets']:,} targets of {result['test']}, {result['steps']} steps (95 % intervals)",
        ["", *columns.values(), "guidance"],
        rows,
        f"stable: at most 0.08 eV/atom above the hull by {result['energy_model']}",
    )
