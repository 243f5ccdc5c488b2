"""Bootstrap intervals against the textbook's standard errors."""

import math

import numpy as np
import pytest

from crystalml.metrics.intervals import bootstrap, bootstrap_ratio


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


def test_basic_intervals_take_the_bias_out() -> None:
    """|mean| of centred noise is biased upwards; its interval reaches 0 all the same, and never below."""
    reached = 0
    for seed in range(40):
        values = np.random.default_rng(seed).normal(size=100)
        low, high = bootstrap(lambda x: abs(float(x.mean())), values, seed=seed, least=0.0)
        assert 0 <= low <= high
        reached += low == 0
    assert reached >= 34


def test_intervals_of_a_mean_cover_it() -> None:
    hits = 0
    for seed in range(100):
        values = np.random.default_rng(seed).gamma(4.0, size=80)
        low, high = bootstrap(lambda x: float(x.mean()) - 5, values, seed=seed)
        hits += low <= -1.0 <= high
    assert 88 <= hits <= 100


def test_no_interval_of_what_is_not_finite() -> None:
    assert all(math.isnan(bound) for bound in bootstrap(lambda x: float("nan"), np.ones(5)))
