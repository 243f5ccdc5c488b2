"""Scores of predicted distributions: how sharp they are, and whether they hold what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalml.errors import InputError

Array = NDArray[np.float64]


def crps(samples: NDArray[Any], y: NDArray[Any], fair: bool = False) -> Array:
    """(b,) continuous ranked probability score, in the unit of y, of n samples each: samples (b, n), y (b,).

    mean_i |x_i - y| - sum_ij |x_i - x_j| / (2 n^2), the score of the step function that the samples are
    (Gneiting and Raftery, JASA 102, 359 (2007), Eq. 21); with one sample the absolute error. fair divides
    by 2 n (n - 1), which in the mean is the score of the distribution the samples were drawn from
    (Ferro, Q. J. R. Meteorol. Soc. 140, 1917 (2014)). Raises InputError (shapes, fair with one sample).
    """
    x, truth = np.asarray(samples, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or truth.shape != x.shape[:1] or not x.shape[1]:
        raise InputError(f"samples (b, n) and y (b,) do not fit together: {x.shape} and {truth.shape}")
    n = x.shape[1]
    if fair and n < 2:
        raise InputError("a fair score needs at least two samples")
    weight = 2 * np.arange(1, n + 1) - n - 1  # of sorted values: sum_ij |x_i - x_j| = 2 sum_i weight_i x_(i)
    spread = np.sort(x, axis=1) @ weight / (n * (n - 1) if fair else n * n)
    score: Array = np.abs(x - truth[:, None]).mean(1) - spread
    return score


def covered(low: NDArray[Any], high: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
    """(b,) whether y lies in [low, high]; the mean is the coverage. Raises InputError for crossed bounds."""
    bottom, top, truth = (np.asarray(value, np.float64) for value in (low, high, y))
    crossed = np.flatnonzero(~(bottom <= top))
    if len(crossed):
        raise InputError(f"interval {crossed[0]} is none: {bottom[crossed[0]]:g} to {top[crossed[0]]:g}")
    inside: NDArray[np.bool_] = (bottom <= truth) & (truth <= top)
    return inside


def interval_score(low: NDArray[Any], high: NDArray[Any], y: NDArray[Any], level: float) -> Array:
    """(b,) width of the interval that is to hold y with probability `level`, plus 2 / (1 - level) x the miss.

    Smallest in the mean for the true quantiles (Gneiting and Raftery 2007, Eq. 43).
    """
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1, not {level}")
    covered(low, high, y)  # refuses crossed bounds
    bottom, top, truth = (np.asarray(value, np.float64) for value in (low, high, y))
    miss = np.maximum(bottom - truth, 0) + np.maximum(truth - top, 0)
    score: Array = top - bottom + 2 / (1 - level) * miss
    return score
