"""Space groups in their standard settings, as spglib tabulates them: operations, orbits, normalisers, cells.

A setting is named by its Hall number, 1 to 530 (Seto's list). Operations act on columns, x' = R x + t; here
coordinates are rows, so X' = X @ R.T + t.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import numpy as np
import spglib
from numpy.typing import NDArray

Array = NDArray[Any]

SAME_SITE = 2e-3  # fractional; closer images of a position are one atom on a special position


@cache
def operations(hall: int) -> tuple[Array, Array]:
    """(g, 3, 3) rotations and (g, 3) translations of the conventional cell, centring included."""
    found: Any = spglib.get_symmetry_from_database(hall)
    return found["rotations"].astype(np.int64), found["translations"]


@cache
def centring(hall: int) -> Array:
    """(k, 3) lattice translations within the conventional cell, 0 first; k atoms share a primitive one."""
    rotations, translations = operations(hall)
    pure = translations[(rotations == np.eye(3, dtype=int)).all((1, 2))]
    return pure[np.argsort(np.abs(pure).sum(1), kind="stable")]


@cache
def space_group(hall: int) -> tuple[int, str]:
    """(number, short international symbol)."""
    found: Any = spglib.get_spacegroup_type(hall)
    return int(found.number), str(found.international_short)


@cache
def hall_number(number: int) -> int:
    """The default setting of a space group: the smallest Hall number, as in spglib's standardised cells."""
    return next(hall for hall in range(1, 531) if space_group(hall)[0] == number)


def wrapped(difference: Array) -> Array:
    """Fractional differences in [-1/2, 1/2]."""
    return difference - np.rint(difference)


def images(hall: int, position: Array) -> Array:
    """(g, 3) images of one position under all operations, in the order of `operations`."""
    rotations, translations = operations(hall)
    return rotations @ position + translations


def orbit(hall: int, position: Array) -> tuple[Array, Array]:
    """The distinct images in [0, 1) of one position, (m, 3), and the operation that makes each, (m,)."""
    points = images(hall, position)
    kept: list[int] = []
    left = np.ones(len(points), bool)
    while left.any():
        first = int(np.argmax(left))
        kept.append(first)
        left &= np.abs(wrapped(points - points[first])).max(1) > SAME_SITE
    return points[kept] % 1.0, np.array(kept)


def snap(hall: int, position: Array) -> Array:
    """The position moved onto its site exactly: the mean of it under the operations that leave it in place.

    x -> (1/|S|) sum over S of (R x + t - shift), S the site's stabiliser.
    """
    difference = images(hall, position) - position
    shift = np.rint(difference)
    stays = np.abs(difference - shift).max(1) <= SAME_SITE
    return position + (difference - shift)[stays].mean(0)


@cache
def polar(hall: int) -> Array:
    """(3, 3) projector on the directions along which the origin is free (rows: X @ polar)."""
    return operations(hall)[0].mean(0).T


@cache
def normaliser(hall: int) -> Array:
    """(k, 3, 3) integer changes of basis with entries -1, 0, 1 that map the group's rotations and centring
    onto themselves, one for each left coset of the rotations (an affine normaliser's linear part).
    """
    candidates = _unimodular()
    rotations, _ = operations(hall)
    group = np.unique(_code(rotations))
    inverse = np.rint(np.linalg.inv(candidates)).astype(np.int64)
    keep = np.ones(len(candidates), bool)
    for rotation in rotations[np.unique(_code(rotations), return_index=True)[1]]:
        keep[keep] = np.isin(_code(candidates[keep] @ rotation @ inverse[keep]), group)
    for vector in centring(hall)[1:]:
        moved = candidates @ vector
        keep &= (np.abs(wrapped(moved[:, None] - centring(hall))) < 1e-6).all(2).any(1)
    chosen = candidates[keep]
    point_group = rotations[np.unique(_code(rotations), return_index=True)[1]]
    order = np.argsort(np.abs(chosen - np.eye(3, dtype=int)).sum((1, 2)), kind="stable")
    seen: set[int] = set()
    kept = []
    for change in chosen[order]:
        if int(_code(change[None])[0]) not in seen:
            kept.append(change)
            seen.update(_code(point_group @ change).tolist())
    return np.stack(kept)


@cache
def _unimodular() -> Array:
    entries = np.array(list(product((-1, 0, 1), repeat=9)), np.int64).reshape(-1, 3, 3)
    determinants = np.rint(np.linalg.det(entries)).astype(int)
    return entries[np.abs(determinants) == 1]


def _code(matrices: Array) -> Array:
    """Integer matrices (entries within +-9) as unique integers."""
    return (matrices.reshape(len(matrices), 9) + 9) @ (19 ** np.arange(9, dtype=np.int64))


def symmetric_cell(number: int, cell: Array) -> Array:
    """(6,) a, b, c, alpha, beta, gamma with the equalities of the crystal system of space group `number`.

    Equal lengths become their geometric mean; trigonal and rhombohedral groups use hexagonal axes.
    """
    a, b, c, alpha, beta, gamma = cell
    if number >= 195:
        return np.array([(a * b * c) ** (1 / 3)] * 3 + [90.0] * 3)
    if number >= 143:
        return np.array([np.sqrt(a * b)] * 2 + [c, 90.0, 90.0, 120.0])
    if number >= 75:
        return np.array([np.sqrt(a * b)] * 2 + [c, 90.0, 90.0, 90.0])
    if number >= 16:
        return np.array([a, b, c, 90.0, 90.0, 90.0])
    if number >= 3:
        return np.array([a, b, c, 90.0, beta, 90.0])
    return np.array([a, b, c, alpha, beta, gamma])


def metric(cell: Array) -> Array:
    """(..., 3, 3) metric tensors of cells (..., 6)."""
    lengths, cosines = cell[..., :3], np.cos(np.radians(cell[..., 3:]))
    gram = np.ones((*cell.shape[:-1], 3, 3))
    for k, (i, j) in enumerate(((1, 2), (0, 2), (0, 1))):
        gram[..., i, j] = gram[..., j, i] = cosines[..., k]
    return gram * lengths[..., :, None] * lengths[..., None, :]


def vectors(cell: Array) -> Array:
    """(..., 3, 3) rows a, b, c, lower triangular: the Cholesky factor of the metric."""
    return np.linalg.cholesky(metric(cell))


def parameters(lattice: Array) -> Array:
    """(..., 6) lengths and angles in degrees of rows (..., 3, 3)."""
    lengths = np.linalg.norm(lattice, axis=-1)
    unit = lattice / lengths[..., None]
    cosines = np.stack([(unit[..., i, :] * unit[..., j, :]).sum(-1) for i, j in ((1, 2), (0, 2), (0, 1))], -1)
    return np.concatenate([lengths, np.degrees(np.arccos(np.clip(cosines, -1, 1)))], -1)
