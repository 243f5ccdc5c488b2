"""Which crystals a structure prediction benchmark asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pymatgen.core import Structure

from crystalml.convert import read_structures, to_batch
from crystalml.datasets.arrays import Arrays, standard_orientation
from crystalml.datasets.crysdb import BENCHMARKS, read_parquet
from crystalml.errors import InputError

VALIDATION = BENCHMARKS[2:]


def read_test(path: str | Path, benchmark: str | None = None) -> Arrays:
    """A Parquet file of crystals, of one that holds all splits the rows marked "test"; or structure files.

    The latter are a folder or a file of any kind that `read_structures` takes. benchmark: of CrysDB's file,
    the validation rows of "mp_20_val" or "mpts_52_val" instead.
    """
    if benchmark is not None and benchmark not in VALIDATION:
        raise InputError(f"benchmark must be one of {', '.join(VALIDATION)}, not {benchmark!r}")
    if benchmark is None and Path(path).suffix != ".parquet":
        return _from_files(path)
    data = read_parquet(path)
    if benchmark is not None:
        rows = (data.labels["benchmark"] == BENCHMARKS.index(benchmark)) & (data.strings["split"] == "val")
        data = data[rows]
    elif "split" in data.strings and (data.strings["split"] == "test").any():
        data = data[data.strings["split"] == "test"]
    if len(set(data.ids)) < len(data):
        raise InputError(f"{path}: ids repeat, so samples could not be told apart")
    return data


def _from_files(path: str | Path) -> Arrays:
    found = read_structures(path).structures
    x = to_batch([structure for _, structure in found], dtype=torch.float64)
    cell, frac, _ = standard_orientation(x.lattice.numpy(), x.frac.numpy(), x.index.numpy())
    fields = x.numbers.numpy().astype(np.int8), frac.astype(np.float32), cell.astype(np.float32)
    return Arrays(*fields, x.num_atoms.numpy(), ids=[Path(name).name for name, _ in found])


def choose(data: Arrays, n: int | None, seed: int) -> Arrays:
    """The first n of a seeded shuffle, so that a larger n contains the smaller ones."""
    if n is not None and not 1 <= n <= len(data):
        raise InputError(f"n must lie in 1..{len(data)}, the size of the test set, not {n}")
    return data[np.random.default_rng(seed).permutation(len(data))[:n]]


def per_crystal(data: Arrays, values: NDArray[Any]) -> list[NDArray[Any]]:
    return np.split(values, np.cumsum(data.num_atoms)[:-1])


def structures(data: Arrays) -> list[Structure]:
    """All crystals as they are; the reader has refused flat cells."""
    parts = zip(per_crystal(data, data.numbers), data.lattice, per_crystal(data, data.frac), strict=True)
    found = (to_structure(*part) for part in parts)
    return [structure for structure in found if structure is not None]


def to_structure(numbers: NDArray[Any], lattice: NDArray[Any], frac: NDArray[Any]) -> Structure | None:
    """A pymatgen Structure in standard orientation, None for what is no crystal: NaN or no volume."""
    if not (np.isfinite(lattice).all() and np.isfinite(frac).all() and abs(np.linalg.det(lattice)) > 1e-6):
        return None
    cell, moved, _ = standard_orientation(lattice[None], frac, np.zeros(len(numbers), np.int64))
    return Structure(cell[0], numbers.astype(int).tolist(), moved)
