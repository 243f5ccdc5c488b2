"""CrysDiff's study: properties by diffusion or by regression, pretrained, frozen, from many labels or few.

JARVIS and SuperCon come with their official splits; crystals of MatBench and of the Materials Project are cut
60/20/20 at random, anew for each seed. Every fit is shown the same number of crystals; the best round on
validation counts.
The ablations of the paper's Figure 5 start from encoders pretrained here, see `crysdiff_variants`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crystalml.benchmarks.crysdiff_report import PRINTED, pairs, pooled, show_all
from crystalml.benchmarks.crysdiff_variants import VARIANTS, corpus, moved, pretrain
from crystalml.benchmarks.matbench_tasks import load_task
from crystalml.benchmarks.report import environment
from crystalml.crystal import CrystalBatch
from crystalml.datasets.arrays import Arrays, pack
from crystalml.datasets.crysdb import crysdb, read_parquet
from crystalml.datasets.splits import random_split
from crystalml.device import pick_device
from crystalml.embed import embed
from crystalml.errors import InputError
from crystalml.journal import Journal, write_json
from crystalml.learners import N_SAMPLES, Diffusion, Learner
from crystalml.metrics.predictive import covered, crps
from crystalml.models.model import CrystalModel, EncoderConfig
from crystalml.models.property_head import PropertyConfig
from crystalml.primitive import primitive_cells
from crystalml.progress import ProgressBar
from crystalml.property import Method, PropertyPredictor, with_target
from crystalml.recipes import Size, diffcsp
from crystalml.weights.registry import as_model

Ids = NDArray[np.int64]

JARVIS = {
    "jarvis-e_form": ("formation_energy_peratom", "eV/atom"),
    "jarvis-gap_opt": ("optb88vdw_bandgap", "eV"),
    "jarvis-e_total": ("optb88vdw_total_energy", "eV/atom"),
    "jarvis-ehull": ("ehull", "eV/atom"),
    "jarvis-gap_mbj": ("mbj_bandgap", "eV"),
    "jarvis-kv": ("bulk_modulus_kv", "GPa"),
    "jarvis-gv": ("shear_modulus_gv", "GPa"),
    "jarvis-slme": ("slme", "%"),
    "jarvis-spillage": ("spillage", ""),
}
"""The nine properties of the paper's table, by the name of their column."""
MATBENCH = {"mp-e_form": "mp_e_form", "mp-gap": "mp_gap", "mp-log_k": "log_kvrh", "mp-log_g": "log_gvrh"}
SUPERCON = "supercon-log_tc"
"""log10 of the measured critical temperature: the worked example of experimental data."""
PROPERTIES = (*JARVIS, *MATBENCH, "mp-ehull", SUPERCON)


@dataclass(frozen=True)
class Row:
    """A way to learn. start: "scratch" or "given", by the encoder of the settings, or one of `VARIANTS`.

    again: after the encoder is fine-tuned a new head learns on it, for as long as diffusion's noise head.
    """

    method: Method | Learner
    start: str
    freeze: bool = False
    again: bool = False


_PRINTED = Diffusion(prior="mean", head="affine")  # the paper's, but for the head that cannot learn
ROWS = {
    "scratch + regression": Row("regression", "scratch"),
    "scratch + diffusion": Row("diffusion", "scratch"),
    "pretrained + regression": Row("regression", "given"),
    "pretrained + regression again": Row("regression", "given", again=True),
    "pretrained + diffusion": Row("diffusion", "given"),
    "frozen + regression": Row("regression", "given", freeze=True),
    "frozen + diffusion": Row("diffusion", "given", freeze=True),
    "frozen + diffusion (affine)": Row(Diffusion(head="affine"), "given", freeze=True),
    "frozen + diffusion (mean)": Row(Diffusion(prior="mean"), "given", freeze=True),
    "frozen + diffusion (paper)": Row(Diffusion(prior="mean", head="paper"), "given", freeze=True),
    PRINTED: Row(_PRINTED, "joint"),
    "CrysDiff w/o joint diffusion": Row(_PRINTED, "separate"),
    "CrysDiff w/o EGNN": Row(_PRINTED, "non-equivariant"),
    "CrysDiff w/o fixing structures": Row(replace(_PRINTED, joint=True), "joint"),
    "CrysDiff w/o updating EGNN": Row(_PRINTED, "joint", freeze=True),
    "CrysDiff w/o pretraining": Row(_PRINTED, "untrained"),
}
USUAL = tuple(ROWS)[:7]
ABLATION = tuple(row for row in ROWS if row.startswith(PRINTED))
"""Figure 5, under the paper's names, and no pretraining at all."""
_LEVELS = (np.arange(100) + 0.5) / 100  # the distribution, for its CRPS


@dataclass(frozen=True)
class Settings:
    """What every fit gets. seen: crystals shown while learning (a frozen encoder: ten times as many, they
    are encoded once). minutes: a cap on top. max_train: labels at most; validation a third of it; max_test.
    encoder_lr: for all pretrained encoders, None for each method's own. pretrain, size: crystals shown to
    each network of the ablations while it is pretrained, and its size.
    """

    encoder: str = "diffcsp"
    seen: int = 200_000
    minutes: float | None = None
    max_train: int | None = None
    max_test: int | None = None
    max_atoms: int | None = None
    lr: float = 1e-3
    encoder_lr: float | None = None
    pretrain: int = 200_000
    size: Size = "small"


@dataclass(frozen=True)
class Labelled:
    """Crystals in primitive cells, values (b,), places of train, val and test, rows (b,) of the file."""

    crystals: CrystalBatch
    y: NDArray[np.float64]
    parts: Mapping[str, Ids]
    unit: str
    rows: Ids


def run(
    root: str | Path,
    properties: Sequence[str] = PROPERTIES,
    rows: Sequence[str] = USUAL,
    fractions: Sequence[float] = (100,),
    settings: Settings | None = None,
    *,
    seeds: Sequence[int] = (0,),
    timing: int = 256,
    out: str | Path = "benchmark-crysdiff",
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """MAE, CRPS and coverage of 90 % intervals on test crystals, as JSON in `out`; stopped, it goes on.

    fractions: percent of the training labels. seeds: of the splits that are cut here, the labels drawn, the
    heads' first weights; figures are means over them. timing: batch of the comparison of the chains with one
    encoder pass, 0 for none. Raises InputError for unknown properties, rows, fractions and sizes.
    """
    settings = settings or Settings()
    _check(properties, rows, fractions, settings)
    journal = Journal(Path(out), "results.jsonl")
    found = journal.open(asdict(settings))
    done = {(r["seed"], r["property"], r["fraction"], r["row"]) for r in found}
    where = pick_device(device)
    wanted = [fit for fit in product(seeds, properties, fractions, rows) if fit not in done]
    starts = {ROWS[row].start for *_, row in wanted}
    variants = _variants(root, starts, settings, Path(out, "pretraining"), seeds[0], str(where), progress)
    with ProgressBar(progress, "crysdiff") as bar:
        bar.add(len(wanted))
        for (seed, name), fits in groupby(wanted, key=lambda fit: fit[:2]):
            data = load(root, name, settings, seed)
            for *_, fraction, row in fits:
                start = variants.get(ROWS[row].start)
                record = {"seed": seed, "property": name, "row": row, "fraction": fraction}
                record |= measure(data, row, fraction, settings, str(where), start, seed)
                journal.append([record])
                found.append(record)
                bar.advance(1)
    result: dict[str, Any] = {
        "benchmark": "crysdiff",
        "settings": asdict(settings),
        "records": pooled(found),
        "pairs": pairs(found),
        "timing": time_chains(root, settings, timing, where) if timing else None,
        "environment": environment(where),
    }
    write_json(Path(out, "result.json"), result)
    show_all(result)
    return result


def _variants(
    root: str | Path,
    starts: Set[str],
    settings: Settings,
    folder: Path,
    seed: int,
    device: str,
    progress: bool,
) -> dict[str, CrystalModel | EncoderConfig]:
    names = [name for name in VARIANTS if name in starts]
    if not names:
        return {}
    data = corpus(root, settings.max_atoms)
    amount, size = settings.pretrain, settings.size
    return pretrain(names, data, amount, size, folder, seed=seed, device=device, progress=progress)


def _check(
    properties: Sequence[str], rows: Sequence[str], fractions: Sequence[float], settings: Settings
) -> None:
    diffcsp(settings.size)  # which refuses a size it does not know
    for kind, names, known in (("property", properties, PROPERTIES), ("row", rows, tuple(ROWS))):
        for name in names:
            if name not in known:
                raise InputError(f"unknown {kind} {name!r}; choose from {', '.join(known)}")
    if bad := [f for f in fractions if not 0 < f <= 100]:
        raise InputError(f"fractions are percent of the labels, within 0 and 100, not {bad[0]:g}")


def load(root: str | Path, name: str, settings: Settings, seed: int = 0) -> Labelled:
    """The labelled crystals of one property; limits thin them out at random, the same for every row."""
    if name in JARVIS:
        arrays, y, parts, unit = _jarvis(root, name)
    else:
        arrays, y, parts, unit = _supercon(root) if name == SUPERCON else _mp(root, name, seed)
    limits = {"train": settings.max_train, "val": None, "test": settings.max_test}
    if settings.max_train:
        limits["val"] = max(1, settings.max_train // 3)
    draw = np.random.default_rng(1000 + seed)
    fits = arrays.num_atoms <= (settings.max_atoms or arrays.num_atoms.max())
    parts = {k: draw.permutation(ids[fits[ids]])[: limits[k]] for k, ids in parts.items()}
    used = np.concatenate(list(parts.values()))
    cells, _ = primitive_cells(pack(arrays[used], labels=())[:])
    ends = np.cumsum([0, *(len(ids) for ids in parts.values())])
    places = {k: np.arange(ends[i], ends[i + 1]) for i, k in enumerate(parts)}
    return Labelled(cells, y[used], places, unit, used)


Cut = tuple[Arrays, NDArray[np.float64], dict[str, Ids], str]


def _jarvis(root: str | Path, name: str) -> Cut:
    column, unit = JARVIS[name]
    data = read_parquet(Path(root, "properties", "jarvis_3536.parquet"))
    y = data.labels[column].astype(np.float64)
    return data, y, _official(y, data.strings[f"{column}_split"]), unit


def _supercon(root: str | Path) -> Cut:
    data = read_parquet(Path(root, "superconductors", "supercon3d_ordered.parquet"))
    y = np.log10(data.labels["tc"].astype(np.float64))
    return data, y, _official(y, data.strings["split"]), "log10 K"


def _official(y: NDArray[np.float64], split: NDArray[Any]) -> dict[str, Ids]:
    return {k: np.flatnonzero(np.isfinite(y) & (split == k)) for k in ("train", "val", "test")}


def _mp(root: str | Path, name: str, seed: int) -> Cut:
    if name in MATBENCH:
        task = load_task(root, MATBENCH[name])
        data, y, unit = task.crystals, task.y, task.task.unit
    else:
        data = crysdb(root, "train", sources=("mp",))
        y, unit = data.labels["energy_above_hull"].astype(np.float64), "eV/atom"
        data, y = data[np.isfinite(y)], y[np.isfinite(y)]
    return data, y, random_split(len(y), {"train": 0.6, "val": 0.2, "test": 0.2}, seed), unit


def measure(
    data: Labelled,
    row: str,
    fraction: float,
    settings: Settings,
    device: str,
    start: CrystalModel | EncoderConfig | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """One fit and its figures for each test crystal. start: None for the encoder of the settings.

    From a start, `moved` is the error with the crystal turned at random and its origin elsewhere.
    """
    how, ids = ROWS[row], dict(data.parts)
    encoder = as_model(settings.encoder, "cpu", torch.float32) if start is None else start
    if how.start == "scratch":
        assert isinstance(encoder, CrystalModel)
        encoder = encoder.config.encoder
    ids["train"] = ids["train"][: max(2, round(len(ids["train"]) * fraction / 100))]
    places = {k: torch.from_numpy(v) for k, v in ids.items()}
    x, y, begin = data.crystals, data.y, time.perf_counter()
    labelled = (x[places["train"]], y[ids["train"]], (x[places["val"]], y[ids["val"]]))
    rounds = math.ceil(settings.seen / len(ids["train"]))
    predictor = _predictor(how, encoder, how.freeze, rounds, settings, device, seed).fit(*labelled)
    if how.again:
        predictor = _predictor(how, predictor.model_, True, rounds, settings, device, seed).fit(*labelled)
    seconds, truth = time.perf_counter() - begin, y[ids["test"]]
    value, levels = predictor.predict(x[places["test"]], quantiles=(0.05, 0.5, 0.95, *_LEVELS))
    low, high = levels[:, 0], levels[:, 2]
    scores = {
        "mae": np.abs(value - truth),
        "crps": crps(levels[:, 3:], truth),
        "width": high - low,
        "deviation": np.abs(truth - np.median(y[ids["train"]])),
    }
    if start is not None:
        scores["moved"] = np.abs(predictor.predict(moved(x[places["test"]])) - truth)
    return {
        **{k: len(v) for k, v in ids.items()},
        "unit": data.unit,
        "epochs": len(predictor.history_),
        "seconds": seconds,
        "crystals": data.rows[ids["test"]].tolist(),
        "coverage": covered(low, high, truth).astype(int).tolist(),
        **{k: [float(f"{each:.4g}") for each in v] for k, v in scores.items()},
    }


def _predictor(
    how: Row,
    encoder: CrystalModel | EncoderConfig,
    freeze: bool,
    rounds: int,
    settings: Settings,
    device: str,
    seed: int,
) -> PropertyPredictor:
    rounds *= 10 if freeze else 1
    return PropertyPredictor(
        encoder,
        how.method,
        primitive=False,
        epochs=rounds,
        patience=max(20, rounds // 4),
        minutes=settings.minutes,
        lr=settings.lr,
        encoder_lr=settings.encoder_lr if isinstance(encoder, CrystalModel) else None,
        freeze=freeze,
        seed=seed,
        device=device,
    )


def time_chains(root: str | Path, settings: Settings, crystals: int, device: torch.device) -> dict[str, Any]:
    """Seconds of one encoder pass over a batch, of 20 chains on its features and of as many as is usual."""
    data = read_parquet(Path(root, "properties", "jarvis_3536.parquet"))
    model = as_model(settings.encoder, str(device), torch.float32)
    x = pack(data[:crystals], labels=())[:]
    torch.manual_seed(0)
    tuned: CrystalModel = with_target(model, PropertyConfig(head="diffusion"), 0).to(device).eval()
    head = tuned.property_head
    assert head is not None
    spent: dict[int, list[float]] = {0: [], 20: [], N_SAMPLES: []}
    with torch.no_grad():
        h = embed(tuned, x).graph
        for _ in range(5):
            for chains, seconds in spent.items():
                start = time.perf_counter()
                if not chains:
                    embed(tuned, x)
                else:
                    Diffusion().estimate(head, h, chains)
                seconds.append(time.perf_counter() - start)
    encode, *rest = (min(seconds) for seconds in spent.values())
    return {
        "crystals": len(x),
        "encoder_seconds": encode,
        "chain_seconds": dict(zip(list(spent)[1:], rest, strict=True)),
    }
