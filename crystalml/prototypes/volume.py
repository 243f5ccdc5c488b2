"""The volume of a composition: a linear model of its logarithm, learned from crystals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalml.elements import MAX_Z, covalent_radii
from crystalml.prototypes.elements import descriptors

Array = NDArray[Any]

RIDGE = 1e-2


@dataclass(frozen=True)
class VolumeModel:
    """log(V / N) = log(sum_z x_z r_z^3) + sum_z x_z a_z + sum_zz' x_z x_z' phi_z^T M phi_z' + b.

    x: atomic fractions, r: covalent radii, phi: electronegativity, radius, row and Mendeleev number. The
    bilinear part is what bonds between unlike elements take away. `table` (119, 119) holds a and M together,
    log(V / N) = log(x . r^3) + x^T table x; `error` is the mean absolute error in the logarithm on the data
    it was fitted to.
    """

    table: Array
    error: float

    def log_volume(self, elements: Sequence[int] | Array, amounts: Sequence[int] | Array) -> float:
        """log of cubic Angstrom per atom."""
        z, x = np.asarray(elements), np.asarray(amounts, np.float64)
        x = x / x.sum()
        return float(np.log(x @ _cubes()[z]) + x @ self.table[np.ix_(z, z)] @ x)

    def tensors(self) -> dict[str, Array]:
        return {
            "volume.table": self.table.astype(np.float32),
            "volume.error": np.array([self.error], np.float32),
        }

    @staticmethod
    def from_tensors(tensors: dict[str, Array]) -> VolumeModel:
        return VolumeModel(tensors["volume.table"].astype(np.float64), float(tensors["volume.error"][0]))


def fit_volume(fractions: Array, volumes: Array) -> VolumeModel:
    """Ridge regression on (b, 119) atomic fractions and (b,) cubic Angstrom per atom, rounds without the
    tenth that fits worst: compressed and exploded cells teach nothing.
    """
    phi = _phi()
    k = phi.shape[1]
    pairs = [(i, j) for i in range(k) for j in range(i, k)]
    mixed = fractions @ phi
    bilinear = np.stack([mixed[:, i] * mixed[:, j] for i, j in pairs], 1)
    square = np.stack([fractions @ (phi[:, i] * phi[:, j]) for i, j in pairs], 1)
    design = np.concatenate([np.ones((len(fractions), 1)), fractions, bilinear - square], 1)
    target = np.log(volumes) - np.log(fractions @ _cubes())
    keep = np.ones(len(target), bool)
    weight = np.zeros(design.shape[1])
    error = np.zeros(len(target))
    for _ in range(3):
        a = design[keep]
        weight = np.linalg.solve(a.T @ a + RIDGE * np.eye(a.shape[1]), a.T @ target[keep])
        error = np.abs(design @ weight - target)
        keep = error <= np.quantile(error, 0.9)
    linear = weight[0] + weight[1 : MAX_Z + 2]
    matrix = np.zeros((k, k))
    for (i, j), value in zip(pairs, weight[MAX_Z + 2 :], strict=True):
        matrix[i, j] += value / 2
        matrix[j, i] += value / 2
    own = linear - np.einsum("zi,ij,zj->z", phi, matrix, phi)
    table = (own[:, None] + own) / 2 + phi @ matrix @ phi.T  # x sums to 1, so x.a = x^T (a 1^T + 1 a^T) x / 2
    return VolumeModel(table, float(error.mean()))


def _phi() -> Array:
    return descriptors()[:, -4:]


def _cubes() -> Array:
    return covalent_radii().numpy().astype(np.float64) ** 3
