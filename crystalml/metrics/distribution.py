"""Distances between the distributions of two sets of crystals: Wasserstein, Frechet, total variation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance

from crystalml.errors import InputError, NonFiniteError
from crystalml.metrics.intervals import Interval, bootstrap

Array = NDArray[Any]


@dataclass(frozen=True)
class Distance:
    """A distance between two samples, its 95 % bootstrap interval, and how many rows each sample had.

    floor: the same distance between two random halves of the reference, which is what a perfect generator
    would score with half as many samples; None where the reference has fewer than 4 rows.
    """

    value: float
    interval: Interval
    floor: float | None
    count: int
    reference_count: int


def wasserstein(values: Array, reference: Array) -> float:
    """W1 = integral |F(x) - G(x)| dx of two one-dimensional samples, in their unit (scipy's)."""
    return float(wasserstein_distance(_checked(values, 1), _checked(reference, 1)))


def frechet(features: Array, reference: Array) -> float:
    """||m1 - m2||^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) of features (n, d) and (m, d): means m, covariances C.

    Dowson and Landau 1982; Heusel et al. 2017 (FID); with ALIGNN's features, GemsDiff's FAD. Squared units of
    the features. With the centred rows over sqrt(n - 1) written as Q R, the last trace is the sum of the
    singular values of R1 R2^T: no root of a matrix is taken, so fewer samples than features, rank-deficient
    covariances and equal sets are as exact as any. Biased upwards by about d / n: compare equal counts only.
    """
    x, y = _checked(features, 2), _checked(reference, 2)
    if x.shape[1] != y.shape[1]:
        raise InputError(f"features have {x.shape[1]} columns, those of the reference {y.shape[1]}")
    if min(len(x), len(y)) < 2:
        raise InputError(f"a covariance needs at least 2 crystals, not {len(x)} and {len(y)}")
    first, second = _triangle(x), _triangle(y)
    shared = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    spread = (first**2).sum() + (second**2).sum() - 2 * shared
    shift = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum()
    return float(max(0.0, shift + spread))  # rounding may fall below 0 for equal sets


def total_variation(labels: Array, reference: Array) -> float:
    """1/2 sum_k |p_k - q_k|: the share of one set that would need other labels (such as space groups).

    0 for equal histograms, 1 for sets without a common label.
    """
    if not (len(labels) and len(reference)):
        raise InputError("a distribution needs at least one value on both sides")
    names, codes = np.unique(np.concatenate([labels, reference]), return_inverse=True)
    first = np.bincount(codes[: len(labels)], minlength=len(names)) / len(labels)
    second = np.bincount(codes[len(labels) :], minlength=len(names)) / len(reference)
    return float(np.abs(first - second).sum() / 2)


def measure(
    distance: Callable[[Array, Array], float],
    values: Array,
    reference: Array,
    seed: int = 0,
    draws: int = 200,
    partners: NDArray[np.int64] | None = None,
) -> Distance:
    """A distance with its bootstrap interval and its floor.

    Both samples are redrawn, independently. partners: (n,) the row of the reference that each value was made
    for, if they were: then rows of the reference are redrawn, each with all its values (none, one or many
    shots), as draws apart would add a distance that is not there, and take shots for so many answers.
    """
    floor = None
    if len(reference) >= 4:
        order = np.random.default_rng(seed).permutation(len(reference))
        half = len(reference) // 2
        floor = distance(reference[order[:half]], reference[order[half:]])
    value = distance(values, reference)
    if partners is None:
        interval = bootstrap(distance, values, reference, seed=seed, draws=draws, least=0.0)
    else:
        order, shots = np.argsort(partners, kind="stable"), np.bincount(partners, minlength=len(reference))
        start = shots.cumsum() - shots

        def paired(rows: NDArray[np.int64]) -> float:
            amount = shots[rows]
            places = np.repeat(start[rows] - (amount.cumsum() - amount), amount) + np.arange(amount.sum())
            if len(places) < min(2, len(values)):  # rows without values: nothing to measure
                return float("nan")
            return distance(values[order[places]], reference[rows])

        interval = bootstrap(paired, np.arange(len(reference)), seed=seed, draws=draws, least=0.0)
    return Distance(value, interval, floor, len(values), len(reference))


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """R of the centred rows over sqrt(n - 1), so that R^T R is the covariance."""
    centred: NDArray[np.float64] = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)
    return np.linalg.qr(centred, mode="r") if len(x) > x.shape[1] else centred


def _checked(values: Array, dimensions: int) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if array.ndim != dimensions or not len(array):
        raise InputError(
            f"expected a filled array of {dimensions} dimension(s), not one of shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{int((~np.isfinite(array)).sum())} of {array.size} values are NaN or infinite")
    return array
