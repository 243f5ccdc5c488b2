"""Featurizing throughput: ours beside matminer's structure features and matgl's MEGNet, in one run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pymatgen.core import Structure

from crystalml.benchmarks.report import environment, show
from crystalml.convert import to_structures
from crystalml.datasets.arrays import pack
from crystalml.datasets.crysdb import read_parquet
from crystalml.device import pick_device
from crystalml.errors import InputError
from crystalml.featurizers import DaoFeaturizer, FourierFrameNetFeaturizer
from crystalml.journal import write_json

Featurize = Callable[[Sequence[Structure]], Any]
REFERENCE = ("matminer SiteStatsFingerprint", "matgl MEGNet")


def run(
    data: str | Path,
    *,
    n: int = 100,
    repeats: int = 3,
    seed: int = 0,
    out: str | Path | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Structures a second of each featurizer on n crystals of a table; the best of `repeats` rounds counts.

    All start from pymatgen Structures; loading a network is not timed. MEGNet has the published sizes and
    untrained weights, which cost as much. A package that is not there is left out and named so.
    Raises InputError for a table with fewer crystals.
    """
    where = pick_device(device)
    table = read_parquet(data)
    if len(table) < n:
        raise InputError(f"{data} holds {len(table)} crystals, fewer than {n}")
    rows = np.sort(np.random.default_rng(seed).permutation(len(table))[:n])
    structures = to_structures(pack(table[rows], labels=())[:])
    speeds: dict[str, float | None] = dict.fromkeys(_CANDIDATES)
    found: dict[str, Featurize] = {}
    for name, make in _CANDIDATES.items():
        try:
            found[name] = make(str(where))
        except ImportError:
            continue
        found[name](structures[:2])
    # A core's other work does not count: what a single thread used is what it takes on a quiet core.
    alone = where.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    for _ in range(repeats):  # in turns, so that all meet the same machine
        for name, featurize in found.items():
            speeds[name] = max(speeds[name] or 0.0, _speed(featurize, structures, clock))
    result = {
        "benchmark": "features",
        "data": Path(data).name,
        "crystals": n,
        "atoms": float(np.mean([len(s) for s in structures])),
        "structures_per_second": speeds,
        "environment": environment(where),
    }
    if out is not None:
        write_json(Path(out), result)
    _print(result)
    return result


def _speed(featurize: Featurize, structures: Sequence[Structure], clock: Callable[[], float]) -> float:
    start = clock()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        featurize(structures)
    return len(structures) / (clock() - start)


def _fourierframenet(device: str) -> Featurize:
    featurizer = FourierFrameNetFeaturizer(device=device)
    return featurizer.featurize_many


def _as_they_come(device: str) -> Featurize:
    featurizer = FourierFrameNetFeaturizer(device=device, primitive=False)
    return featurizer.featurize_many


def _dao(device: str) -> Featurize:
    return DaoFeaturizer(device=device).featurize_many


def _magpie(device: str) -> Featurize:
    from crystalml.metrics.fingerprints import composition_fingerprint

    return lambda structures: [composition_fingerprint(s.composition) for s in structures]


def _site_stats(device: str) -> Featurize:
    from matminer.featurizers.structure import SiteStatsFingerprint

    featurizer = SiteStatsFingerprint.from_preset("CrystalNNFingerprint_ops")
    return lambda structures: [featurizer.featurize(s) for s in structures]


def _megnet(device: str) -> Featurize:
    from matgl.config import DEFAULT_ELEMENTS
    from matgl.models import MEGNet

    net = MEGNet(element_types=DEFAULT_ELEMENTS, is_classification=False).to(device).eval()

    def featurize(structures: Sequence[Structure]) -> list[Any]:
        with torch.no_grad():
            found = []
            for structure in structures:
                net.predict_structure(structure)
                found.append(net.feature_dict["readout"])
        return found

    return featurize


_CANDIDATES: dict[str, Callable[[str], Featurize]] = {
    "FourierFrameNetFeaturizer": _fourierframenet,
    "the same, cells as they come": _as_they_come,
    "DaoFeaturizer": _dao,
    REFERENCE[0]: _site_stats,
    REFERENCE[1]: _megnet,
    "Magpie (composition only)": _magpie,
}


def _print(result: dict[str, Any]) -> None:
    speeds = result["structures_per_second"]
    known = [speeds[name] for name in REFERENCE if speeds[name]]
    rows = []
    for name, speed in speeds.items():
        times = f"{speed / max(known):.2g}" if speed and known else ""
        rows.append((name, f"{speed:.3g}" if speed else "not installed", times))
    title = f"features of {result['crystals']} crystals of {result['data']}, {result['atoms']:.0f} atoms each"
    show(title, ["", "structures/s", "times the faster reference"], rows)
