"""From a crystal to its symmetry description: setting, cell, and one representative of every orbit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from crystalml.datasets.arrays import Arrays
from crystalml.geometry.groups import symmetry_dataset
from crystalml.prototypes.symmetry import centring, orbit, parameters, space_group, symmetric_cell, vectors
from crystalml.replacing import replacing

Array = NDArray[Any]

SYMPREC = 0.1  # Angstrom, as in the Materials Project; relaxed cells miss their symmetry by some hundredths


@dataclass(frozen=True)
class Description:
    """One crystal in its standard conventional cell.

    cell: (6,) lengths and angles, scaled to unit volume per atom. volume: cubic Angstrom per atom.
    species: (o,) atomic number of each orbit. sites: (o, 3) one position of each. letters: Wyckoff letters.
    multiplicity: (o,) atoms of each orbit in the primitive cell.
    """

    hall: int
    cell: Array
    volume: float
    species: Array
    sites: Array
    multiplicity: Array
    letters: str

    @property
    def num_atoms(self) -> int:
        """Atoms in the primitive cell."""
        return int(self.multiplicity.sum())


def describe(lattice: Array, frac: Array, numbers: Array, symprec: float = SYMPREC) -> Description | None:
    """The symmetrised crystal; None where spglib finds no consistent cell at `symprec` nor at 0.01."""
    crystal: Any = (lattice, frac, numbers)
    for tolerance in dict.fromkeys((symprec, min(symprec, 0.01))):
        found = symmetry_dataset(crystal, tolerance)
        if found is not None and (out := _read(found)) is not None:
            return out
    return None


def _read(found: Any) -> Description | None:
    hall, positions, species = int(found.hall_number), found.std_positions, found.std_types
    number = space_group(hall)[0]
    letter = dict(zip(found.mapping_to_primitive.tolist(), found.wyckoffs, strict=True))
    letters = [letter.get(i, "?") for i in found.std_mapping_to_primitive.tolist()]
    copies = len(centring(hall))
    left = np.ones(len(positions), bool)
    first, counts = [], []
    while left.any():
        atom = int(np.argmax(left))
        points, _ = orbit(hall, positions[atom])
        gap = np.abs(points[:, None] - positions - np.rint(points[:, None] - positions)).max(2)
        hit = (gap < 5e-3).any(0) & (species == species[atom])
        if hit.sum() != len(points) or not left[hit].all() or len(points) % copies:
            return None
        left &= ~hit
        first.append(atom)
        counts.append(len(points) // copies)
    cell = symmetric_cell(number, parameters(found.std_lattice))
    volume = float(np.linalg.det(vectors(cell)) / len(positions))
    cell[:3] /= volume ** (1 / 3)
    return Description(
        hall, cell, volume, species[first].astype(np.int64), positions[first] % 1.0, np.array(counts),
        "".join(letters[atom] for atom in first),
    )  # fmt: skip


def describe_all(
    data: Arrays, cache: Path | None = None, size: int = 4000, symprec: float = SYMPREC
) -> Iterator[list[tuple[str, Description]]]:
    """(id, description) of many crystals, `size` at a time, without those that cannot be described.

    Parts found in the folder `cache` are read instead of computed, so a stopped run goes on; the folder
    belongs to one data set and one symprec.
    """
    for start in range(0, len(data), size):
        path = None if cache is None else cache / f"part-{start:08d}.safetensors"
        part = _load(path)
        if part is None:
            part = list(_describe_part(data[start : start + size], symprec))
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                _save(path, part)
        yield [(data.ids[start + row], found) for row, found in part]


def _describe_part(data: Arrays, symprec: float) -> Iterator[tuple[int, Description]]:
    ends = np.cumsum(data.num_atoms)
    for row, (end, count) in enumerate(zip(ends, data.num_atoms, strict=True)):
        atoms = slice(end - count, end)
        found = describe(
            data.lattice[row].astype(np.float64), data.frac[atoms].astype(np.float64),
            data.numbers[atoms].astype(int), symprec,
        )  # fmt: skip
        if found is not None:
            yield row, found


def _save(path: Path, part: Sequence[tuple[int, Description]]) -> None:
    items = [found for _, found in part]

    def join(name: str, blank: Array) -> Array:
        return np.concatenate([blank, *(getattr(item, name) for item in items)])

    tensors: dict[str, Array] = {
        "row": np.array([row for row, _ in part], np.int32),
        "hall": np.array([item.hall for item in items], np.int16),
        "cell": np.array([item.cell for item in items]).reshape(-1, 6),
        "volume": np.array([item.volume for item in items]),
        "orbits": np.array([len(item.species) for item in items], np.int32),
        "species": join("species", np.zeros(0)).astype(np.int16),
        "sites": join("sites", np.zeros((0, 3))),
        "multiplicity": join("multiplicity", np.zeros(0)).astype(np.int16),
        "letters": np.frombuffer("".join(item.letters for item in items).encode(), np.uint8).copy(),
    }
    with replacing(path) as file:
        save_file(tensors, file)


def _load(path: Path | None) -> list[tuple[int, Description]] | None:
    if path is None or not path.is_file():
        return None
    try:
        t = load_file(path)
    except (OSError, SafetensorError):
        return None
    ends = np.cumsum(t["orbits"])
    letters = t["letters"].tobytes().decode()
    out = []
    for i, (end, count) in enumerate(zip(ends, t["orbits"], strict=True)):
        o = slice(end - count, end)
        item = Description(
            int(t["hall"][i]), t["cell"][i], float(t["volume"][i]), t["species"][o].astype(np.int64),
            t["sites"][o], t["multiplicity"][o].astype(np.int64), letters[o],
        )  # fmt: skip
        out.append((int(t["row"][i]), item))
    return out
