"""A cheap isometry invariant that tells whether two predictions for one composition are the same crystal."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

Array = NDArray[Any]

NEIGHBOURS = 24
NEAR = 10  # of these: those that a small distortion leaves in place
ALIKE = 0.02  # mean difference of the near distances over (V/N)^(1/3), some 0.05 Angstrom
SURE = 0.05  # largest difference of any; fcc, hcp and other stackings differ by more, beyond the first twelve


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


class Distinct:
    """Tells whether a structure differs from all those it was asked about before, per composition.

    By fingerprints where these are far apart or close in every distance; `StructureMatcher` decides the rest,
    such as stackings of the same layers, whose near neighbours are the same.
    """

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[Array, Structure]]] = {}
        self._matcher = StructureMatcher()

    def __call__(self, structure: Structure) -> bool:
        shape = fingerprint(structure)
        seen = self._seen.setdefault(structure.composition.reduced_formula, [])
        if any(self._same(shape, structure, *other) for other in seen):
            return False
        seen.append((shape, structure))
        return True

    def _same(self, shape: Array, structure: Structure, other: Array, known: Structure) -> bool:
        off = np.abs(shape - other)
        if off[..., :NEAR].mean() > ALIKE:
            return False
        return bool(off.max() <= SURE) or bool(self._matcher.fit(structure, known))
