"""Read CrysDB, the corpus of Materials Project and other crystals, into flat arrays.

The folder holds `crysdb/{mp,extra}.parquet`, `tests/*_test.parquet` and `frames/labelled_*.parquet`.
Reading needs pyarrow (`pip install "crystalml-dao[data]"`); nothing here runs a loop over crystals.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from crystalml.crystal import EV_PER_A3
from crystalml.datasets.arrays import MAX_Z, Array, Arrays, fractions, pack, standard_orientation
from crystalml.errors import CellError, FileReadError, InputError, NonFiniteError, UnsupportedError

__all__ = [
    "BENCHMARKS",
    "ENERGY",
    "ENERGY_2018",
    "ENERGY_FILLED",
    "SOURCES",
    "Arrays",
    "crysdb",
    "dft_frames",
    "element_references",
    "fill_energy",
    "fit_references",
    "fractions",
    "frames",
    "pack",
    "read_parquet",
    "scheme_shift",
    "standard_orientation",
    "test_set",
]

BENCHMARKS = ("", "mp_20_train", "mp_20_val", "mpts_52_val")
"""Meaning of the integer label `benchmark`: its position in this tuple."""
SOURCES = ("mp", "wbm", "lemat_oqmd", "aflow_icsd", "lemat_alexandria", "jarvis_optb88")
SPLITS = ("train", "val")
ENERGY, ENERGY_2018 = "formation_energy_per_atom", "formation_energy_per_atom_mp2018"
ENERGY_FILLED = "formation_energy_per_atom_filled"

_GEOMETRY = ("numbers", "frac_coords", "lattice", "n_atoms")
_IDS = ("material_id", "parent")  # a frame's id is that of the crystal it was made from


def read_parquet(path: str | Path) -> Arrays:
    """Read one file of the corpus, upright (`standard_orientation`) and checked.

    Numeric columns become labels, text columns `strings`; `benchmark` is coded by `BENCHMARKS`,
    `stress_gpa` becomes `stress` (b, 3, 3) in eV/A^3 and `forces` an atom label, both turned with the cell.
    """
    table = _table(path)
    rows, names = table.num_rows, set(table.column_names)
    if missing := {"numbers", "frac_coords", "lattice"} - names:
        raise FileReadError(f"{path} lacks the columns {sorted(missing)}; a CrysDB file has numbers, "
                            "frac_coords and lattice")  # fmt: skip
    numbers, num_atoms = _flat(table, "numbers")
    cell = _flat(table, "lattice")[0].reshape(rows, 3, 3)
    frac = _flat(table, "frac_coords")[0].reshape(-1, 3)
    _check(path, numbers, frac, cell, num_atoms)
    index = np.repeat(np.arange(rows), num_atoms)
    cell, frac, rotation = standard_orientation(cell, frac, index)

    labels, strings, atoms = {}, {}, {}
    if "forces" in names:
        forces = _flat(table, "forces")[0].reshape(-1, 3)
        atoms["forces"] = np.einsum("ni,nij->nj", forces, rotation[index]).astype(np.float32)
    if "stress_gpa" in names:
        stress = _flat(table, "stress_gpa")[0].reshape(rows, 3, 3) / EV_PER_A3
        labels["stress"] = (rotation.swapaxes(1, 2) @ stress @ rotation).astype(np.float32)
    for name in table.column_names:
        column = table.column(name)
        if name in (*_GEOMETRY, "forces", "stress_gpa", "stress_ev_a3"):
            continue
        if name == "benchmark":
            codes = {text: code for code, text in enumerate(BENCHMARKS)}
            labels[name] = np.array([codes[text or ""] for text in column.to_pylist()], np.float32)
        elif "string" in str(column.type):  # large or in a dictionary, too
            strings[name] = np.asarray(column.to_pylist(), dtype=np.str_)
        else:
            labels[name] = column.to_numpy().astype(np.float32)
    ids = next((strings[name].tolist() for name in _IDS if name in strings), [str(i) for i in range(rows)])
    return Arrays(
        numbers.astype(np.int8), frac.astype(np.float32), cell.astype(np.float32), num_atoms,
        labels, ids, atoms, strings,
    )  # fmt: skip


def crysdb(
    root: str | Path, split: str = "train", max_atoms: int | None = None, sources: Collection[str] = SOURCES
) -> Arrays:
    """The corpus itself: Materials Project crystals by their split; the other sources train only.

    Labels: `formation_energy_per_atom` (MP2020 corrections), `formation_energy_per_atom_mp2018`,
    `energy_above_hull`, `band_gap`, `spacegroup`, `benchmark` (see `BENCHMARKS`); NaN where missing.

    WBM's formation energies are read as the 2018 scheme although their column says no such thing: against
    the labelled totals of the same crystals (`element_references`) they miss the corrections that MP2020
    added for Br, I, Se and Te (by 0.39 to 0.55 eV per such atom, as the 2018 labels do), while references
    fitted on 2018 labels leave no dependence on the anion (mean 0.03 eV/atom with and without them).
    """
    _one_of("split", split, SPLITS)
    for name in sources:
        _one_of("source", name, SOURCES)
    parts = []
    if "mp" in sources:
        mp = read_parquet(Path(root, "crysdb", "mp.parquet"))
        mp = mp[mp.strings["split"] == split]
        parts.append(replace(mp, strings={"source": np.full(len(mp), "mp", dtype="<U16")}))
    if split == "train" and set(sources) - {"mp"}:
        extra = read_parquet(Path(root, "crysdb", "extra.parquet"))
        extra = extra[np.isin(extra.strings["source"], list(sources))]
        labels = dict(extra.labels)
        labels[ENERGY_2018] = labels.pop(ENERGY)
        text = {"source": extra.strings["source"].astype("<U16")}
        parts.append(replace(extra, labels=labels, strings=text))
    if not parts:
        raise InputError(f"no crystals: the split {split!r} holds none of the sources {sorted(sources)}; "
                         "only 'mp' has a validation part")  # fmt: skip
    return _smaller(Arrays.cat(parts), max_atoms)


def frames(root: str | Path, split: str = "train", max_atoms: int | None = None) -> Arrays:
    """Frames labelled by CHGNet 0.3.0: `energy_per_atom` (eV/atom, total), `stress`, atom label `forces`.

    `formation_energy_per_atom` is added through `element_references`; `strings["kind"]` tells
    equilibrium, rattled and decorated frames apart and an id is the parent crystal's.
    """
    _one_of("split", split, SPLITS)
    references, _ = element_references(root)
    data = _smaller(read_parquet(Path(root, "frames", f"labelled_{split}.parquet")), max_atoms)
    formation = data.labels["energy_per_atom"] - reference_energy(data, references)
    return replace(data, labels={**data.labels, ENERGY: formation.astype(np.float32)})


def dft_frames(root: str | Path, max_atoms: int | None = None) -> Arrays:
    """PBE frames of Cu, Li, Mo, N, Nb, Ni, Ta, W and alloys: hot, strained, molten, surfaces, defects.

    Zuo et al., J. Phys. Chem. A 124, 731 (2020), and the SNAP sets before it. `energy_per_atom` (eV/atom,
    total, uncorrected) and atom label `forces`; no stress, whose sign in the file is not certain.
    """
    data = _smaller(read_parquet(Path(root, "frames", "dft_snap_elements_alloys.parquet")), max_atoms)
    energy = data.labels["energy"] / data.num_atoms
    return replace(data, labels={"energy_per_atom": energy.astype(np.float32)})


def test_set(root: str | Path, name: str) -> Arrays:
    """A complete official test set, "mp_20" or "mpts_52": for final measurement only."""
    _one_of("test set", name, ("mp_20", "mpts_52"))
    return read_parquet(Path(root, "tests", f"{name}_test.parquet"))


test_set.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever pytest thinks of the name


def element_references(root: str | Path) -> tuple[Array, float]:
    """Least-squares reference energy of each element, from frames' totals and DFT formation energies.

    mu = argmin sum_i (e_i - h_i - sum_Z x_iZ mu_Z)^2 over unperturbed train frames, with e the labelled
    total and h the MP2020 formation energy of the parent crystal, x the atomic fractions.

    Returns (119,) eV/atom by atomic number, NaN for elements never seen, and the fit's mean absolute
    error in eV/atom.
    """
    mp = crysdb(root, "train", sources=("mp",))
    known = {name: h for name, h in zip(mp.ids, mp.labels[ENERGY], strict=True) if np.isfinite(h)}
    data = read_parquet(Path(root, "frames", "labelled_train.parquet"))
    data = data[(data.strings["kind"] == "equilibrium") & np.isin(data.ids, list(known))]
    target = data.labels["energy_per_atom"].astype(np.float64) - np.array([known[name] for name in data.ids])
    return fit_references(fractions(data), target)


def fit_references(composition: Array, target: Array) -> tuple[Array, float]:
    """Solve composition @ mu = target in least squares for the elements present; (mu, MAE)."""
    seen = composition.any(axis=0)
    solution = np.linalg.lstsq(composition[:, seen], target, rcond=None)[0]
    out = np.full(composition.shape[1], np.nan)
    out[seen] = solution
    return out, float(np.abs(composition[:, seen] @ solution - target).mean())


def scheme_shift(root: str | Path) -> tuple[Array, float]:
    """Linear model of MP2020 minus 2018 formation energy, from the train crystals that have both.

    shift = sum_Z x_Z (c_Z + o_Z [oxide] + f_Z [fluoride]): both schemes correct anions by their amount
    and transition metals by theirs where oxygen or fluorine is present. Coefficients of elements without
    a crystal that has both labels are 0.

    Returns (3, 119) coefficients c, o, f in eV and the mean absolute error in eV/atom.
    """
    mp = crysdb(root, "train", sources=("mp",))
    both = np.isfinite(mp.labels[ENERGY]) & np.isfinite(mp.labels[ENERGY_2018])
    design = _shift_features(mp[both]).reshape(int(both.sum()), -1)
    target = (mp.labels[ENERGY] - mp.labels[ENERGY_2018]).astype(np.float64)[both]
    solution = np.linalg.lstsq(design, target, rcond=1e-8)[0]
    return solution.reshape(3, MAX_Z + 1), float(np.abs(design @ solution - target).mean())


def fill_energy(data: Arrays, root: str | Path) -> Arrays:
    """Add the label `formation_energy_per_atom_filled`: MP2020 where known, else 2018 + `scheme_shift`.

    The fitted shift is good to 0.011 eV/atom on validation crystals (the bare 2018 label to 0.049).
    """
    shift, _ = scheme_shift(root)
    moved = data.labels[ENERGY_2018] + np.einsum("bkz,kz->b", _shift_features(data), shift)
    filled = np.where(np.isfinite(data.labels[ENERGY]), data.labels[ENERGY], moved).astype(np.float32)
    return replace(data, labels={**data.labels, ENERGY_FILLED: filled})


def _shift_features(data: Arrays) -> Array:
    """(b, 3, 119) atomic fractions: always, in oxides, in fluorides."""
    x = fractions(data)
    return np.stack([x, x * (x[:, 8:9] > 0), x * (x[:, 9:10] > 0)], axis=1)


def reference_energy(data: Arrays, references: Array) -> Array:
    """(b,) composition-weighted reference; NaN where a crystal holds an element without one."""
    return np.bincount(data.index, references[data.numbers.astype(np.int64)], len(data)) / data.num_atoms


def _smaller(data: Arrays, max_atoms: int | None) -> Arrays:
    return data if max_atoms is None else data[data.num_atoms <= max_atoms]


def _one_of(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InputError(f"unknown {what} {value!r}; choose from {', '.join(allowed)}")


def _table(path: str | Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UnsupportedError('reading parquet needs pyarrow: pip install "crystalml-dao[data]"') from error
    try:
        return parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise FileReadError(f"cannot read {path} as a parquet file: {error}") from error


def _flat(table: Any, name: str) -> tuple[Array, Array]:
    """A column of lists as (all values in a row, length of each list)."""
    column = table.column(name)
    sizes = [np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks]
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(values), np.concatenate(sizes).astype(np.int64)


def _check(path: str | Path, numbers: Array, frac: Array, cell: Array, num_atoms: Array) -> None:
    """Refuse what would poison everything after: ragged columns, unknown Z, NaN, flat cells, no atoms."""
    if len(numbers) != len(frac) or (num_atoms < 1).any():
        raise FileReadError(f"{path}: every crystal needs at least one atom and 3 coordinates for each atom")
    if len(numbers) and not (numbers.min() >= 1 and numbers.max() <= MAX_Z):
        raise FileReadError(f"{path}: atomic numbers {numbers.min()}..{numbers.max()} outside 1..{MAX_Z}")
    if not (np.isfinite(frac).all() and np.isfinite(cell).all()):
        raise NonFiniteError(f"{path}: NaN or infinity in coordinates or cell")
    if (flat := np.abs(np.linalg.det(cell)) < 1e-3).any():
        raise CellError(f"{path}: crystal {int(np.argmax(flat))} has a cell without volume")
