"""What is judged and against what: crystals from files, tables or memory, none lost on the way."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from pymatgen.core import IStructure, Structure

from crystalml.convert import to_batch, to_structures, told_alone
from crystalml.datasets.arrays import Arrays
from crystalml.datasets.crysdb import read_parquet
from crystalml.elements import symbol
from crystalml.errors import CrystalMLError, FileReadError, InputError
from crystalml.files import expand, parse
from crystalml.metrics.duplicates import digest

Source = str | Path | Structure | Atoms | Arrays | Iterable[Any]
_TARGET_KEYS = ("target", "material_id", "id")


@dataclass(frozen=True)
class Crystals:
    """Crystals by name. One that could not be read is None, with the reason: it counts, as invalid.

    targets: the id of the reference crystal that a sample was drawn for, where the sample says so, else None.
    """

    names: list[str]
    structures: list[Structure | None]
    reasons: list[str]
    targets: list[str | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def readable(self) -> list[int]:
        return [i for i, structure in enumerate(self.structures) if structure is not None]

    def digests(self) -> list[str]:
        """A digest of each crystal's elements, cell and coordinates (to 1e-6), "" where there is none."""
        return ["" if s is None else digest(s) for s in self.structures]


def read_crystals(source: Source, reference: Crystals | None = None) -> Crystals:
    """Crystals of files (of the kinds of `read_structures`), folders, globs, Parquet, or in memory.

    A Parquet file has CrysDB's columns (`numbers`, `frac_coords`, `lattice`); "file.parquet#train" takes the
    rows whose `split` is train. A .jsonl of `crystalml benchmark csp` holds no elements: they are those of
    the reference crystal of its id. A frame that is no crystal (NaN, no volume, not periodic) becomes None,
    and so does an unreadable file. Raises FileReadError where there is no such file, InputError for nothing.
    """
    found = _Rows()
    for item in _items(source):
        if isinstance(item, Arrays):
            found.add_arrays(item)
        elif isinstance(item, str | Path):
            _read_path(item, reference, found)
        else:
            found.add(f"sample {len(found.names)}", item)
    if not found.names:
        raise InputError("there is no crystal to judge: the input is empty")
    return Crystals(found.names, found.structures, found.reasons, found.targets)


class _Rows:
    def __init__(self) -> None:
        self.names: list[str] = []
        self.structures: list[Structure | None] = []
        self.reasons: list[str] = []
        self.targets: list[str | None] = []

    def add(self, name: str, item: Any, target: str | None = None) -> None:
        """One crystal through the same door as any other, or None and why it did not pass."""
        structure, reason = None, ""
        if item is None:
            reason = "missing"
        else:
            target = target or _target(item)
            try:
                structure = to_structures(to_batch(item, dtype=torch.float64))[0]
            except CrystalMLError as error:
                reason = told_alone(error)
        self.put(name, structure, reason, target)

    def put(self, name: str, structure: Structure | None, reason: str, target: str | None) -> None:
        self.names.append(name)
        self.structures.append(structure)
        self.reasons.append(reason)
        self.targets.append(target)

    def add_arrays(self, data: Arrays) -> None:
        """Rows of a checked table: `read_parquet` has refused what is no crystal."""
        ends = np.cumsum(data.num_atoms)
        names = data.ids or [f"row {i}" for i in range(len(data))]
        for i, (end, count) in enumerate(zip(ends, data.num_atoms, strict=True)):
            species = [symbol(int(z)) for z in data.numbers[end - count : end]]
            frac = data.frac[end - count : end].astype(np.float64)
            self.put(names[i], Structure(data.lattice[i].astype(np.float64), species, frac), "", None)


def _items(source: Source) -> list[Any]:
    if isinstance(source, str | Path | Arrays | Atoms | IStructure | Structure):
        return [source]
    return list(source)


def _target(item: Any) -> str | None:
    notes = getattr(item, "properties", None) or getattr(item, "info", None) or {}
    return next((str(notes[key]) for key in _TARGET_KEYS if key in notes), None)


def _read_path(path: str | Path, reference: Crystals | None, found: _Rows) -> None:
    file, _, split = str(path).partition("#")
    if file.endswith(".parquet"):
        found.add_arrays(read_table(path))
        return
    if split and not Path(path).exists():
        raise InputError(f"{path}: only the rows of a Parquet file can be chosen by #split")
    for one in expand(path):
        if not one.is_file():
            raise FileReadError(f"{one}: no such file")
        if one.suffix == ".jsonl" and (rows := _benchmark_rows(one)):
            _add_benchmark(one, rows, reference, found)
            continue
        try:
            crystals: Sequence[Any] = parse(one)
        except FileReadError as error:
            found.put(str(one), None, str(error).removeprefix(f"{one}: "), None)
            continue
        for number, crystal in enumerate(crystals):
            found.add(str(one) if len(crystals) == 1 else f"{one}@{number}", crystal)


def read_table(path: str | Path) -> Arrays:
    """A Parquet file, or with "#split" its rows of that split."""
    file, _, split = str(path).partition("#")
    data = read_parquet(file)
    if not split:
        return data
    if "split" not in data.strings:
        raise InputError(f"{file} has no column `split`, so there are no rows of {split!r}")
    chosen = data.strings["split"] == split
    if not chosen.any():
        there = ", ".join(sorted(set(data.strings["split"].tolist())))
        raise InputError(f"{file} has no rows of the split {split!r}; it has {there}")
    return data[chosen]


def _benchmark_rows(file: Path) -> list[Mapping[str, Any]]:
    """The lines of `benchmark csp`'s samples.jsonl; none if the file is of another kind."""
    with file.open() as lines:
        first = lines.readline()
        try:
            row = json.loads(first)
        except ValueError:
            return []
        if not (isinstance(row, dict) and {"id", "shot", "lattice", "frac"} <= set(row)):
            return []
        return [row, *(json.loads(line) for line in lines if line.endswith("\n"))]


def _add_benchmark(
    file: Path, rows: list[Mapping[str, Any]], reference: Crystals | None, found: _Rows
) -> None:
    if reference is None:
        raise InputError(
            f"{file} holds samples of `crystalml benchmark csp`, whose elements are those of the test set: "
            "give it as the reference"
        )
    known = dict(zip(reference.names, reference.structures, strict=True))
    for row in sorted(rows, key=lambda row: row["shot"]):
        name = f"{row['id']}/{row['shot']}"
        if (target := known.get(row["id"])) is None:
            raise InputError(f"{file}: the reference has no crystal {row['id']!r}: another test set?")
        lattice, frac = np.reshape(row["lattice"], (3, 3)), np.reshape(row["frac"], (-1, 3))
        atoms = Atoms([site.specie.Z for site in target], cell=lattice, scaled_positions=frac, pbc=True)
        found.add(name, atoms, row["id"])
