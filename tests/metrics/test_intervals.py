"""Bootstrap intervals against the textbook's standard errors."""

import math

import numpy as np
import pytest

from crystalml.metrics.intervals import bootstrap_ratio


def test_interval_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=900)
    low, high = bootstrap_ratio(values, np.ones(900))
    assert (high - low) == pytest.approx(2 * 1.96 * values.std() / 30, rel=0.1)
    assert low < values.mean() < high


def test_rows_without_weight_do_not_count() -> None:
    values, weight = np.array([1.0, 1.0, 0.0, 0.0] * 50), np.array([1, 1, 0, 0] * 50)
    assert bootstrap_ratio(values, weight) == (1.0, 1.0)


def test_nothing_to_average() -> None:
    assert all(math.isnan(bound) for bound in bootstrap_ratio(np.zeros(5), np.zeros(5)))
