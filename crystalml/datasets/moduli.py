"""DFT's elastic moduli, of MatBench and thus of the Materials Project's elastic tensors.

The folder holds `properties/matbench_log_{kvrh,gvrh}.parquet`, and `tests/*_test.parquet`, whose formulas
are no one's to learn from.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from crystalml.datasets.arrays import Array, Arrays, formulas
from crystalml.datasets.crysdb import read_parquet
from crystalml.errors import InputError

FILES = {"bulk_modulus": "matbench_log_kvrh.parquet", "shear_modulus": "matbench_log_gvrh.parquet"}
TESTS = ("mp_20_test.parquet", "mpts_52_test.parquet")
RANGE = (1.0, 600.0)  # GPa: hardly a modulus lies outside, failed calculations do


def moduli(root: str | Path) -> Arrays:
    """Crystals with both moduli known: labels `bulk_modulus`, `shear_modulus`, Voigt-Reuss-Hill, in GPa.

    A material listed twice counts once.
    """
    bulk, shear = (read_parquet(Path(root, "properties", file)) for file in FILES.values())
    known = dict(zip(shear.ids, shear.labels["target"].tolist(), strict=True))
    once = np.zeros(len(bulk), bool)
    once[np.unique(bulk.ids, return_index=True)[1]] = True
    data = bulk[once & np.isin(bulk.ids, list(known))]
    logs = (data.labels["target"], np.array([known[name] for name in data.ids]))
    values = {name: (10.0**log).astype(np.float32) for name, log in zip(FILES, logs, strict=True)}
    return replace(data, labels=values, strings={})


def moduli_split(root: str | Path, split: str, max_atoms: int) -> Arrays:
    """Those of at most max_atoms to learn from ("train": no formula of the two official tests or of
    `held_out`), or to measure with ("val": those of `held_out`). Moduli out of `RANGE` are left out."""
    if split not in ("train", "val"):
        raise InputError(f"unknown split {split!r}; choose train or val")
    data = moduli(root)
    sane = np.all([(RANGE[0] < v) & (v < RANGE[1]) for v in data.labels.values()], 0)
    data = data[sane & (data.num_atoms <= max_atoms)]
    names = formulas(data)
    keep = held_out(names)
    if split == "train":
        tested = {name for file in TESTS for name in formulas(read_parquet(Path(root, "tests", file)))}
        keep = ~keep & ~np.isin(names, list(tested))
    data = data[keep]
    if len(data) == 0:
        raise InputError(f"{root} holds no crystal of at most {max_atoms} atoms with elastic moduli")
    return data


def held_out(names: list[str]) -> Array:
    """(b,) a fifth of all `formulas`, by checksum: no potential learns their moduli, benchmarks use them."""
    return np.array([zlib.crc32(formula.encode()) % 5 == 0 for formula in names], bool)
