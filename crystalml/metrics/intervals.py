"""Bootstrap intervals: how far a figure measured on these crystals may be off."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]


def bootstrap_ratio(
    numerator: NDArray[Any], denominator: NDArray[Any], seed: int = 0, draws: int = 2000
) -> Interval:
    """95 % percentile interval of sum(numerator) / sum(denominator), rows drawn with replacement.

    A mean has ones below; a mean over some rows has zeros in both for the others. (nan, nan) if the
    denominator vanishes in every draw (Efron and Tibshirani 1993, chapter 13).
    """
    generator = np.random.default_rng(seed)
    total = len(numerator)
    columns = np.stack([numerator, denominator], axis=1).astype(np.float64)
    weights = np.full(total, 1 / total)
    # In parts: draws x rows counts at once would fill memory.
    sums = [generator.multinomial(total, weights, size=100) @ columns for _ in range(0, draws, 100)]
    above, below = np.concatenate(sums)[:draws].T
    some = below != 0
    if not some.any():
        return float("nan"), float("nan")
    low, high = np.quantile(above[some] / below[some], [0.025, 0.975])
    return float(low), float(high)


def bootstrap_mean(values: NDArray[Any], families: NDArray[Any]) -> Interval:
    """95 % interval of the mean where rows (n,) of one family are drawn together or not at all."""
    _, place = np.unique(families, return_inverse=True)
    return bootstrap_ratio(np.bincount(place, values), np.bincount(place))


def bootstrap(
    statistic: Callable[..., float],
    *samples: NDArray[Any],
    seed: int = 0,
    draws: int = 200,
    least: float = -math.inf,
) -> Interval:
    """95 % basic interval [2 s - q(97.5 %), 2 s - q(2.5 %)] of s = statistic(*samples).

    The rows of each sample are drawn with replacement, independently. Distances between distributions are
    biased upwards, and bootstrap draws once more by about as much; the basic interval reflects them at the
    estimate, which takes the bias out (Efron and Tibshirani 1993, chapter 13). least: what the statistic
    cannot be below, 0 for distances. (nan, nan) where the statistic is not finite; draws where it is not
    are left out.
    """
    value = statistic(*samples)
    if not np.isfinite(value):
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    drawn = [
        statistic(*(sample[generator.integers(len(sample), size=len(sample))] for sample in samples))
        for _ in range(draws)
    ]
    finite = np.asarray(drawn)[np.isfinite(drawn)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [0.025, 0.975])
    return max(least, float(2 * value - high)), max(least, float(2 * value - low))
