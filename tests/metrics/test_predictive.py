"""Scores of distributions against their closed forms."""

import numpy as np
import pytest
from scipy.stats import norm

from crystalml.errors import InputError
from crystalml.metrics.predictive import covered, crps, interval_score

RNG = np.random.default_rng(0)


def normal_crps(mean: float, std: float, y: np.ndarray) -> np.ndarray:
    """Gneiting and Raftery 2007, Eq. 5 of the normal distribution."""
    z = (y - mean) / std
    return std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))


def test_one_sample_is_the_absolute_error() -> None:
    y = RNG.normal(size=7)
    np.testing.assert_allclose(crps(np.zeros((7, 1)), y), np.abs(y))


@pytest.mark.parametrize("fair", [False, True])
def test_the_sorted_sum_is_the_double_sum(fair: bool) -> None:
    x, y = RNG.normal(size=(5, 8)), RNG.normal(size=5)
    pairs = np.abs(x[:, :, None] - x[:, None]).sum((1, 2)) / (2 * 8 * (7 if fair else 8))
    np.testing.assert_allclose(crps(x, y, fair), np.abs(x - y[:, None]).mean(1) - pairs, atol=1e-12)


def test_quantiles_of_a_normal_distribution_score_as_it_does() -> None:
    y = np.linspace(-3, 5, 9)
    x = norm.ppf((np.arange(2000) + 0.5) / 2000, 1.0, 2.0)
    np.testing.assert_allclose(crps(np.tile(x, (9, 1)), y), normal_crps(1.0, 2.0, y), atol=2e-3)


def test_the_fair_score_does_not_depend_on_the_number_of_samples() -> None:
    y = np.full(40_000, 0.4)
    truth = float(normal_crps(0.0, 1.0, y[:1])[0])
    for n in (2, 3, 20):
        x = RNG.normal(size=(40_000, n))
        fair, plain = crps(x, y, fair=True).mean(), crps(x, y).mean()
        assert fair == pytest.approx(truth, abs=0.015)
        assert plain == pytest.approx(truth + 1 / (n * np.sqrt(np.pi)), abs=0.015)  # E|x - x'| = 2 / sqrt(pi)


def test_the_truth_scores_best() -> None:
    y = RNG.normal(size=4000)
    levels = (np.arange(100) + 0.5) / 100

    def score(mean: float, std: float) -> float:
        return float(crps(np.tile(norm.ppf(levels, mean, std), (4000, 1)), y).mean())

    assert score(0, 1) < min(score(0.3, 1), score(0, 0.6), score(0, 1.6))


def test_coverage_and_interval_score_of_a_normal_distribution() -> None:
    y = RNG.normal(size=200_000)
    low, high = (np.full(len(y), norm.ppf(p)) for p in (0.05, 0.95))
    assert covered(low, high, y).mean() == pytest.approx(0.9, abs=0.003)
    closed = 4 * norm.pdf(norm.ppf(0.95)) / 0.1  # of the true quantiles: (2 / a) 2 phi(q)
    assert interval_score(low, high, y, 0.9).mean() == pytest.approx(closed, rel=0.01)
    assert interval_score(1.2 * low, 1.2 * high, y, 0.9).mean() > closed
    assert interval_score(0.8 * low, 0.8 * high, y, 0.9).mean() > closed


def test_bounds_belong_to_the_interval() -> None:
    assert covered(np.array([0.0, 0.0]), np.array([1.0, 1.0]), np.array([0.0, 1.0])).all()


def test_what_has_no_score_is_refused() -> None:
    with pytest.raises(InputError, match="do not fit together"):
        crps(np.zeros((3, 4)), np.zeros(2))
    with pytest.raises(InputError, match="two samples"):
        crps(np.zeros((3, 1)), np.zeros(3), fair=True)
    with pytest.raises(InputError, match="interval 1"):
        covered(np.array([0.0, 2.0]), np.ones(2), np.zeros(2))
    with pytest.raises(InputError, match="level"):
        interval_score(np.zeros(1), np.ones(1), np.zeros(1), 1.0)
