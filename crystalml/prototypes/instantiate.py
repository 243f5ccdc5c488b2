"""From a prototype, elements and a volume to a Structure that has its space group exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Lattice, Structure

from crystalml.datasets.arrays import standard_orientation
from crystalml.geometry.groups import niggli_reduced
from crystalml.prototypes.symmetry import centring, orbit, parameters, space_group, vectors, wrapped
from crystalml.prototypes.tables import Geometry

Array = NDArray[Any]

_PRIMITIVE = {
    "P": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "A": [[1, 0, 0], [0, 0.5, -0.5], [0, 0.5, 0.5]],
    "C": [[0.5, 0.5, 0], [-0.5, 0.5, 0], [0, 0, 1]],
    "I": [[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]],
    "F": [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]],
    "R": [[2 / 3, 1 / 3, 1 / 3], [-1 / 3, 1 / 3, 1 / 3], [-1 / 3, -2 / 3, 1 / 3]],
}  # rows: primitive vectors in conventional ones; International Tables A, obverse setting for R


def build(geometry: Geometry, species: Sequence[int], volume: float) -> Structure:
    """The primitive crystal, its cell Niggli-reduced. species: one for each orbit. volume: A^3 per atom."""
    basis = vectors(geometry.cell)
    scale = (volume * _atoms(geometry) / np.linalg.det(basis)) ** (1 / 3)
    basis = basis * scale
    reduced = primitive_cell(geometry.hall, basis)
    numbers, points = [], []
    for site, z in zip(geometry.sites, species, strict=True):
        inside = _one_of_each(geometry.hall, orbit(geometry.hall, site)[0])
        points.append(inside)
        numbers += [z] * len(inside)
    frac = np.concatenate(points) @ basis @ np.linalg.inv(reduced)
    cell, frac, _ = standard_orientation(reduced[None], frac, np.zeros(len(numbers), np.int64))
    order = np.argsort(numbers, kind="stable")
    lattice = Lattice.from_parameters(*parameters(cell[0]))  # rows as pymatgen turns them
    return Structure(lattice, [numbers[i] for i in order], frac[order])


def primitive_vectors(hall: int) -> Array:
    """(3, 3) rows: primitive vectors in conventional ones."""
    return np.array(_PRIMITIVE[space_group(hall)[1][0]], float)


def primitive_cell(hall: int, basis: Array) -> Array:
    """(3, 3) Niggli-reduced rows of the primitive lattice."""
    return niggli_reduced(primitive_vectors(hall) @ basis)


def _atoms(geometry: Geometry) -> int:
    return int(geometry.multiplicity.sum()) * len(centring(geometry.hall))


def _one_of_each(hall: int, points: Array) -> Array:
    """The points without those that a centring translation takes to an earlier one."""
    keep = np.ones(len(points), bool)
    for vector in centring(hall)[1:]:
        same = np.abs(wrapped(points[:, None] - points - vector)).max(2) < 1e-4
        keep &= ~np.tril(same, -1).any(1)
    return points[keep]
