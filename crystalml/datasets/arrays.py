"""Flat numpy arrays of many crystals: what is read from files, before it is packed for training."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crystalml.elements import symbol
from crystalml.errors import InputError

if TYPE_CHECKING:
    from crystalml.datasets.packed import PackedDataset

Array = NDArray[Any]

MAX_Z = 118


@dataclass(frozen=True)
class Arrays:
    """b crystals with n atoms in all, stored flat.

    numbers: (n,) int8. frac: (n, 3) float32 in [0, 1). lattice: (b, 3, 3) float32, rows a, b, c in Angstrom.
    num_atoms: (b,) int64. labels: name -> (b, ...) float32, NaN where missing. ids: one a crystal.
    atom_labels: name -> (n, ...) float32. strings: name -> (b,) text columns such as `split` or `kind`.
    """

    numbers: Array
    frac: Array
    lattice: Array
    num_atoms: Array
    labels: dict[str, Array] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    atom_labels: dict[str, Array] = field(default_factory=dict)
    strings: dict[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.num_atoms.shape[0])

    @property
    def index(self) -> Array:
        """(n,) the crystal each atom belongs to."""
        return np.repeat(np.arange(len(self)), self.num_atoms)

    def __getitem__(self, which: Array | Sequence[int] | slice) -> Arrays:
        """The chosen crystals (ids, slice or boolean mask), in the order given."""
        rows = np.arange(len(self))[which]
        counts = self.num_atoms[rows]
        first = (np.cumsum(self.num_atoms) - self.num_atoms)[rows] - (np.cumsum(counts) - counts)
        atoms = np.repeat(first, counts) + np.arange(int(counts.sum()))
        return Arrays(
            self.numbers[atoms],
            self.frac[atoms],
            self.lattice[rows],
            counts,
            {name: value[rows] for name, value in self.labels.items()},
            [self.ids[i] for i in rows],
            {name: value[atoms] for name, value in self.atom_labels.items()},
            {name: value[rows] for name, value in self.strings.items()},
        )

    @staticmethod
    def cat(parts: Sequence[Arrays]) -> Arrays:
        """Join; a label or text column that a part lacks is NaN or "" there."""

        def join(kind: str, sizes: list[int], missing: Any) -> dict[str, Array]:
            tables: list[dict[str, Array]] = [getattr(part, kind) for part in parts]
            known = {name: value for table in reversed(tables) for name, value in table.items()}

            def column(name: str, like: Array) -> Array:
                blanks = [np.full((size, *like.shape[1:]), missing, like.dtype) for size in sizes]
                return np.concatenate(
                    [table.get(name, blank) for table, blank in zip(tables, blanks, strict=True)]
                )

            return {name: column(name, like) for name, like in known.items()}

        crystals, atoms = [len(p) for p in parts], [len(p.numbers) for p in parts]
        return Arrays(
            np.concatenate([p.numbers for p in parts]),
            np.concatenate([p.frac for p in parts]),
            np.concatenate([p.lattice for p in parts]),
            np.concatenate([p.num_atoms for p in parts]),
            join("labels", crystals, np.nan),
            [name for p in parts for name in p.ids],
            join("atom_labels", atoms, np.nan),
            join("strings", crystals, ""),
        )


def standard_orientation(lattice: Array, frac: Array, index: Array) -> tuple[Array, Array, Array]:
    """Turn cells right-handed and upright: c along z, a in the xz-plane, b_y > 0.

    A left-handed cell is first read as L -> -L, F -> wrap(-F), which is the same crystal, so that the
    rotation R of L' = L R is proper and chirality survives. Float64 throughout.

    Returns (b, 3, 3) cells, (n, 3) fractional coordinates in [0, 1) and the (b, 3, 3) rotations R that
    carry vectors (v -> v R) and tensors (S -> R^T S R) along.
    """
    cell = np.asarray(lattice, np.float64)
    sign = np.where(np.linalg.det(cell) < 0, -1.0, 1.0)
    cell = cell * sign[:, None, None]
    z = cell[:, 2] / np.linalg.norm(cell[:, 2], axis=-1, keepdims=True)
    y = np.cross(cell[:, 2], cell[:, 0])
    y /= np.linalg.norm(y, axis=-1, keepdims=True)
    rotation = np.stack([np.cross(y, z), y, z], axis=-1)
    upright = cell @ rotation
    upright[:, 0, 1] = upright[:, 2, 0] = upright[:, 2, 1] = 0.0  # exact zeros instead of rounding noise
    return upright, _wrap(np.asarray(frac, np.float64) * sign[index][:, None]), rotation


def _wrap(frac: Array) -> Array:
    """F - floor(F), safe against results that round up to 1 in float32."""
    out = frac - np.floor(frac)
    out[out.astype(np.float32) >= 1.0] = 0.0
    return out


def fractions(data: Arrays) -> Array:
    """(b, 119) atomic fractions by atomic number, float64."""
    width = MAX_Z + 1
    flat = data.index * width + data.numbers.astype(np.int64)
    counts = np.bincount(flat, minlength=len(data) * width).reshape(len(data), width)
    return counts / data.num_atoms[:, None]


def formulas(data: Arrays) -> list[str]:
    """Reduced formulas, elements by atomic number, such as "O2Ti1"."""
    return [reduced_formula(part) for part in np.split(data.numbers, np.cumsum(data.num_atoms))[:-1]]


def reduced_formula(numbers: Array) -> str:
    """The same of one crystal's atomic numbers (n,)."""
    kinds, counts = np.unique(numbers, return_counts=True)
    unit = math.gcd(*counts.tolist())
    pairs = zip(kinds.tolist(), counts.tolist(), strict=True)
    return "".join(f"{symbol(z)}{count // unit}" for z, count in pairs)


def pack(data: Arrays, labels: Collection[str] | None = None) -> PackedDataset:
    """The arrays as a `PackedDataset`, with all labels or only those named, and the atoms' labels."""
    from crystalml.datasets.packed import PackedDataset

    chosen: Mapping[str, Array] = data.labels
    if labels is not None:
        for name in labels:
            if name not in data.labels:
                raise InputError(f"no label {name!r} here; there are {', '.join(sorted(data.labels))}")
        chosen = {name: data.labels[name] for name in labels}
    return PackedDataset.from_arrays(
        data.numbers, data.frac, data.lattice, data.num_atoms, dict(chosen), data.atom_labels
    )
