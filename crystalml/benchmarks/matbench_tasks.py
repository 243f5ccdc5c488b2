"""The eight regression tasks of NeuralCrystal's Table 1, on the crystals at hand, and MP-20's energies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystalml.datasets.arrays import Arrays
from crystalml.datasets.crysdb import BENCHMARKS, ENERGY, read_parquet
from crystalml.datasets.splits import random_split
from crystalml.errors import InputError

FOLD_SEED = 18012019  # MatBench's: KFold(5, shuffle=True, random_state=18012019) over the rows of a task
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}  # NeuralCrystal §4
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """Where a task's crystals and labels are. size: rows of the official task.

    paper: mean absolute errors of NeuralCrystal's Table 1, by row. ids: the file holds labels by Materials
    Project id, crystals come from CrysDB. stand_in: not the official data set, only its property. official:
    it has splits of its own, whatever the seed. ready: the shipped model of the property, fitted to the
    training crystals of seed 0.
    """

    file: str
    label: str
    unit: str
    size: int
    paper: Mapping[str, float] = field(default_factory=dict)
    ids: bool = False
    stand_in: bool = False
    official: bool = False
    ready: str = ""


def _paper(*values: float) -> dict[str, float]:
    return dict(zip(("random", "rr", "ebm-nce", "infonce", "ddm", "pfm"), values, strict=True))


TASKS: dict[str, Task] = {
    "perovskites": Task(
        "tests/perov_5.parquet", "heat_all", "eV", 18_928, _paper(0.035, 0.036, 0.035, 0.035, 0.033, 0.033)
    ),
    "dielectric": Task(
        "properties/matbench_dielectric.parquet",
        "target",
        "",
        4_764,
        _paper(0.287, 0.291, 0.297, 0.301, 0.284, 0.304),
    ),
    "log_gvrh": Task(
        "properties/matbench_log_gvrh.parquet",
        "target",
        "log10 GPa",
        10_987,
        _paper(0.082, 0.083, 0.085, 0.083, 0.079, 0.077),
        ready="log-g",
    ),
    "log_kvrh": Task(
        "properties/matbench_log_kvrh.parquet",
        "target",
        "log10 GPa",
        10_987,
        _paper(0.060, 0.061, 0.061, 0.062, 0.061, 0.059),
        ready="log-k",
    ),
    "exfoliation": Task(
        "properties/2dmatpedia_exfoliation.parquet",
        "exfoliation_energy_per_atom",
        "meV/atom",
        636,
        _paper(67.635, 70.367, 67.914, 63.516, 61.651, 56.098),
        stand_in=True,
    ),
    "phonons": Task(
        "properties/matbench_phonons.parquet",
        "last phdos peak",
        "1/cm",
        1_265,
        _paper(46.693, 63.267, 49.221, 44.940, 45.920, 38.181),
    ),
    "mp_gap": Task(
        "properties/matbench_mp_gap_ids.parquet",
        "target",
        "eV",
        106_113,
        _paper(0.214, 0.227, 0.240, 0.237, 0.228, 0.222),
        ids=True,
        ready="band-gap",
    ),
    "mp_e_form": Task(
        "properties/matbench_mp_e_form_ids.parquet",
        "target",
        "eV/atom",
        132_752,
        _paper(0.035, 0.036, 0.036, 0.040, 0.036, 0.034),
        ids=True,
    ),
    "mp_20_e_form": Task(
        "tests/mp_20_test.parquet",
        ENERGY,
        "eV/atom",
        45_231,
        {"dao-p": 0.026},  # DAO, its own paper
        official=True,
        ready="formation-energy",
    ),
}


@dataclass(frozen=True)
class Data:
    """The crystals of a task that are at hand, their values (b,), and their rows in the official task.

    parts: positions of train, val and test crystals of a task that has splits of its own.
    """

    task: Task
    crystals: Arrays
    y: NDArray[np.float64]
    rows: Ids | None = None
    parts: Mapping[str, Ids] | None = None

    def __len__(self) -> int:
        return len(self.y)


def load_task(root: str | Path, name: str) -> Data:
    """Read one task from the folder of the real data. Raises InputError for an unknown name."""
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}; choose from {', '.join(TASKS)}")
    task = TASKS[name]
    if task.official:
        return _mp_20(Path(root), task)
    crystals = _joined(Path(root), task) if task.ids else read_parquet(Path(root, task.file))
    y = crystals.labels[task.label].astype(np.float64)
    if task.stand_in:
        y = 1000 * y  # eV to meV
    known = np.flatnonzero(np.isfinite(y))
    crystals, y = crystals[known], y[known]
    rows = None
    if "mbid" in crystals.strings:
        rows = np.array([int(text.rsplit("-", 1)[1]) - 1 for text in crystals.strings["mbid"]])
    return Data(task, _bare(crystals), y, rows)


def _bare(crystals: Arrays) -> Arrays:
    return replace(crystals, labels={}, strings={}, atom_labels={})


def _mp_20(root: Path, task: Task) -> Data:
    """The official splits of MP-20, as far as CrysDB holds them; the test is complete."""
    mp = read_parquet(root / "crysdb" / "mp.parquet")
    mp = mp[np.isfinite(mp.labels[task.label])]
    code, split = mp.labels["benchmark"], mp.strings["split"]
    kinds = {"train": (code == BENCHMARKS.index("mp_20_train")) & (split == "train")}
    kinds["val"] = code == BENCHMARKS.index("mp_20_val")
    pieces = [*(mp[chosen] for chosen in kinds.values()), read_parquet(root / task.file)]
    ends = np.cumsum([0, *map(len, pieces)])
    parts = {name: np.arange(*ends[k : k + 2]) for k, name in enumerate(("train", "val", "test"))}
    y = np.concatenate([piece.labels[task.label] for piece in pieces]).astype(np.float64)
    return Data(task, Arrays.cat([_bare(piece) for piece in pieces]), y, parts=parts)


def _joined(root: Path, task: Task) -> Arrays:
    """Labels by id, put on CrysDB's crystals; an id that the labels name twice is left out."""
    import pandas as pd

    table = pd.read_parquet(root / task.file)
    table = table.drop_duplicates("material_id", keep=False)
    mp = read_parquet(root / "crysdb" / "mp.parquet")
    place = {name: k for k, name in enumerate(mp.ids)}
    found = table[table["material_id"].isin(place)]
    crystals = mp[np.array([place[name] for name in found["material_id"]])]
    values = found[task.label].to_numpy(np.float32)
    text = {"mbid": found["mbid"].to_numpy(np.str_)}
    return replace(crystals, labels={task.label: values}, strings=text)


def split(
    data: Data, seed: int, folds: str = "random", max_train: int | None = None, max_test: int | None = None
) -> dict[str, Ids]:
    """Positions of train, val and test crystals; tasks with splits of their own have but these.

    "random": 60/20/20, seed 0, 1, 2 ... (NeuralCrystal). "official": MatBench's fold number `seed` (0..4), of
    which those at hand are tested; of the rest a fifth watches. max_train and max_test thin out what is
    there, at random but the same for every model; validation then has at most a third of max_train.
    """
    if data.parts is not None:
        parts = dict(data.parts)
    elif folds == "official":
        parts = _official(data, seed)
    elif folds == "random":
        parts = random_split(len(data), SHARES, seed)
    else:
        raise InputError(f"unknown folds {folds!r}; choose random or official")
    limits = {"train": max_train, "val": max_train and max(1, max_train // 3), "test": max_test}
    draw = np.random.default_rng(1000 + seed)
    return {name: np.sort(draw.permutation(part)[: limits[name]]) for name, part in parts.items()}


def _official(data: Data, fold: int) -> dict[str, Ids]:
    from sklearn.model_selection import KFold

    if data.rows is None:
        raise InputError("the official folds need MatBench's row numbers, which this task's file lacks")
    if not 0 <= fold < 5:
        raise InputError(f"MatBench has folds 0 to 4, not {fold}")
    pieces = list(KFold(5, shuffle=True, random_state=FOLD_SEED).split(np.arange(data.task.size)))
    tested = np.isin(data.rows, pieces[fold][1])
    rest = np.flatnonzero(~tested)
    parts = random_split(len(rest), {"train": 0.8, "val": 0.2}, fold)
    return {"train": rest[parts["train"]], "val": rest[parts["val"]], "test": np.flatnonzero(tested)}
