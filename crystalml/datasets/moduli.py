"""DFT's elastic moduli of cubic crystals: what a potential learns its curvature from.

The folder holds `properties/matbench_log_{kvrh,gvrh}.parquet` (MatBench, of Materials Project's tensors).
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import spglib

from crystalml.datasets.arrays import Array, Arrays, pack
from crystalml.datasets.crysdb import read_parquet
from crystalml.datasets.packed import PackedDataset
from crystalml.elements import symbol
from crystalml.errors import InputError

FILES = {"bulk_modulus": "matbench_log_kvrh.parquet", "shear_modulus": "matbench_log_gvrh.parquet"}
TESTS = ("mp_20_test.parquet", "mpts_52_test.parquet")
RANGE = (1.0, 600.0)  # GPa: no cubic crystal's modulus lies outside, failed calculations do
MAX_ATOMS = 20
_SYMPREC = 0.01


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


def held_out(formulas: list[str]) -> Array:
    """(b,) a fifth of all formulas, by checksum: no potential learns their moduli, benchmarks use them."""
    return np.array([zlib.crc32(formula.encode()) % 5 == 0 for formula in formulas], bool)


def formulas(data: Arrays) -> list[str]:
    """Reduced formulas, elements by atomic number, such as "O1Ti2"."""
    found = []
    for numbers in np.split(data.numbers, np.cumsum(data.num_atoms))[:-1]:
        kinds, counts = np.unique(numbers, return_counts=True)
        unit = math.gcd(*counts.tolist())
        found.append("".join(f"{symbol(int(z))}{c // unit}" for z, c in zip(kinds, counts, strict=True)))
    return found


def cubic_moduli(root: str | Path, split: str = "train") -> PackedDataset:
    """Cubic crystals whose elastic response symmetry makes simple, with their cube's edges along x, y, z.

    Labels `bulk_modulus` and `shear_modulus` in GPa; site label `internal` (n, 3): the one way atoms may go
    under a shear eps_yz, a direction of length 1, or zeros where symmetry holds them (`Response`).
    split: "train", without the two official tests' formulas and those of `held_out`, or "val", of the latter
    alone.
    """
    if split not in ("train", "val"):
        raise InputError(f"unknown split {split!r}; choose train or val")
    data = moduli(root)
    sane = np.all([(RANGE[0] < v) & (v < RANGE[1]) for v in data.labels.values()], 0)
    data = data[sane & (data.num_atoms <= MAX_ATOMS)]
    names = formulas(data)
    held = held_out(names)
    tested = {name for file in TESTS for name in formulas(read_parquet(Path(root, "tests", file)))}
    data = data[held if split == "val" else ~held & ~np.isin(names, list(tested))]
    starts = np.cumsum(data.num_atoms) - data.num_atoms
    rows, lattices, directions = [], [], []
    for row, (start, count) in enumerate(zip(starts, data.num_atoms, strict=True)):
        atoms = slice(start, start + count)
        response = cubic_response(data.lattice[row], data.frac[atoms], data.numbers[atoms])
        if response is not None:
            rows.append(row)
            lattices.append(response.lattice)
            directions.append(response.internal)
    if not rows:
        raise InputError(f"{root} holds no cubic crystal with elastic moduli")
    data = replace(data[rows], lattice=np.stack(lattices).astype(np.float32))
    return pack(replace(data, atom_labels={"internal": np.concatenate(directions).astype(np.float32)}))


@dataclass(frozen=True)
class Response:
    """A cubic crystal turned so that its cube's edges are x, y, z: lattice (3, 3), rows in Angstrom; internal
    (n, 3), the direction in which its atoms answer a shear eps_yz, zeros if they stay."""

    lattice: Array
    internal: Array


def cubic_response(lattice: Array, frac: Array, numbers: Array) -> Response | None:
    """None where the crystal is not cubic, or symmetry leaves atoms more ways to answer a strain than one.

    The answers a group allows are the invariants of its action on fields w_i (to pressure) and T_i,abc,
    symmetric in bc (to strain): their number is a mean of characters, and any field's average is one.
    """
    found = spglib.get_symmetry_dataset((lattice, frac, numbers), symprec=_SYMPREC)
    if found is None or found.number < 195:
        return None
    cell = np.asarray(lattice, float) @ found.std_rotation_matrix.T
    turns = np.einsum("ia,gij,bj->gab", cell.T, found.rotations, np.linalg.inv(cell))
    images = _images(cell, np.asarray(frac, float), found.rotations, found.translations)
    stays = (images == np.arange(len(frac))).sum(1)
    trace = np.trace(turns, axis1=1, axis2=2)
    pairs = (trace**2 + np.trace(turns @ turns, axis1=1, axis2=2)) / 2  # character of symmetric tensors
    free = round(np.mean(stays * trace))
    ways = round(np.mean((stays - 1) * trace * pairs))  # all atoms alike is no way: that is a translation
    if free or ways > 1:
        return None
    field = np.random.default_rng(0).normal(size=(len(frac), 3, 3, 3))
    field = field + field.swapaxes(2, 3)
    turned = np.einsum("gax,gby,gcz,nxyz->gnabc", turns, turns, turns, field)
    mean = np.zeros_like(field)
    for image, part in zip(images, turned, strict=True):
        mean[image] += part / len(images)
    way = mean[:, :, 1, 2] - mean[:, :, 1, 2].mean(0)
    length = np.linalg.norm(way)
    if ways == 0:
        return Response(cell, np.zeros_like(way))
    return Response(cell, way / length) if length > 1e-3 else None


def _images(cell: Array, frac: Array, rotations: Array, translations: Array) -> Array:
    """(g, n) the atom that each operation takes each atom to."""
    moved = np.einsum("gij,nj->gni", rotations, frac) + translations[:, None]
    away = moved[:, :, None] - frac
    away -= np.round(away)
    found: Array = np.linalg.norm(away @ cell, axis=-1).argmin(-1)
    return found
