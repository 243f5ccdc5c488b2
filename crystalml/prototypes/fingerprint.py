"""A cheap isometry invariant that tells whether two predictions for one composition are the same crystal."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

Array = NDArray[Any]

NEIGHBOURS = 10
ALIKE = 0.02  # mean difference of distances over (V/N)^(1/3), some 0.05 Angstrom


def fingerprint(structure: Structure) -> Array:
    """(c, c, NEIGHBOURS): from atoms of an element to those of another, the k-th smallest distances.

    Averaged over the atoms of the first element, in units of (V/N)^(1/3); average minimum distances
    (Widdowson et al., MATCH 87, 529 (2022)), element by element.
    """
    numbers = np.array(structure.atomic_numbers)
    lattice = structure.lattice.matrix
    reach = 2 if len(numbers) <= 12 else 1
    shifts = np.array(list(product(range(-reach, reach + 1), repeat=3)))
    frac = structure.frac_coords
    gap = frac[None] - frac[:, None]
    gap -= np.rint(gap)
    vectors = (gap[:, :, None] + shifts) @ lattice
    distance = np.sqrt(np.einsum("ijsk,ijsk->ijs", vectors, vectors))
    distance[distance < 1e-6] = np.inf
    unit = (structure.volume / len(numbers)) ** (1 / 3)
    elements = np.unique(numbers)
    out = np.empty((len(elements), len(elements), NEIGHBOURS))
    for i, a in enumerate(elements):
        rows = distance[numbers == a]
        for j, b in enumerate(elements):
            flat = rows[:, numbers == b].reshape(len(rows), -1)
            out[i, j] = np.sort(np.partition(flat, NEIGHBOURS, 1)[:, :NEIGHBOURS], 1).mean(0) / unit
    return out


def alike(first: Array, second: Array) -> bool:
    return bool(np.abs(first - second).mean() <= ALIKE)


class Distinct:
    """Tells whether a structure differs from all those it was asked about before, per composition."""

    def __init__(self) -> None:
        self._seen: dict[str, list[Array]] = {}

    def __call__(self, structure: Structure) -> bool:
        shape = fingerprint(structure)
        seen = self._seen.setdefault(structure.composition.reduced_formula, [])
        if any(alike(shape, other) for other in seen):
            return False
        seen.append(shape)
        return True
