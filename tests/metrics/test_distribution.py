"""Distances between distributions: exact cases, other people's implementations, and honest intervals."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from crystalml.errors import InputError, NonFiniteError
from crystalml.metrics.distribution import frechet, measure, total_variation, wasserstein


def gaussian(seed: int, n: int, d: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


# --- Wasserstein ------------------------------------------------------------------------------------------
def test_wasserstein_is_scipys_and_the_area_between_the_curves() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.gamma(2.0, size=157), rng.normal(3.0, 1.0, size=91)
    assert wasserstein(a, b) == scipy.stats.wasserstein_distance(a, b)
    grid = np.linspace(-5, 25, 300_001)
    difference = np.searchsorted(np.sort(a), grid) / len(a) - np.searchsorted(np.sort(b), grid) / len(b)
    assert wasserstein(a, b) == pytest.approx(np.trapezoid(np.abs(difference), grid), abs=1e-3)


def test_wasserstein_of_exact_cases() -> None:
    x = np.random.default_rng(1).normal(size=200)
    assert wasserstein(x, x[::-1]) == pytest.approx(0, abs=1e-15)
    assert wasserstein(x, x + 0.7) == pytest.approx(0.7)
    assert wasserstein(3 * x, 3 * (x + 0.7)) == pytest.approx(2.1)  # carries the unit
    assert wasserstein(np.array([0.0, 1.0]), np.array([0.0, 3.0])) == pytest.approx(1.0)


# --- Frechet ----------------------------------------------------------------------------------------------
def by_eigenvalues(x: np.ndarray, y: np.ndarray) -> float:
    """The definition: eigenvalues of C1^(1/2) C2 C1^(1/2), clipped at 0."""
    c1, c2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values, vectors = np.linalg.eigh(c1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ c2 @ root).clip(0)).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c1) + np.trace(c2) - 2 * cross)


@pytest.mark.parametrize(
    ("n", "m", "d"), [(400, 300, 7), (50, 60, 32), (20, 500, 32), (9, 12, 64), (2, 2, 5)]
)
def test_frechet_is_the_definition(n: int, m: int, d: int) -> None:
    """More and fewer samples than features: in the latter, covariances have no full rank."""
    x, y = gaussian(0, n, d) * np.arange(1, d + 1), gaussian(1, m, d) + 0.3
    assert frechet(x, y) == pytest.approx(by_eigenvalues(x, y), rel=1e-6)


def test_frechet_agrees_with_the_root_of_the_product() -> None:
    x, y = gaussian(0, 500, 6), gaussian(1, 500, 6) @ np.diag([1, 2, 1, 0.5, 1, 3]) + 1
    root = scipy.linalg.sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False)).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(
        np.cov(x, rowvar=False) + np.cov(y, rowvar=False) - 2 * root
    )
    assert frechet(x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(300, 16), (10, 64), (1000, 1)])
def test_frechet_of_equal_sets_is_zero(n: int, d: int) -> None:
    x = gaussian(3, n, d)
    assert frechet(x, x[::-1]) < 1e-10
    constant = np.hstack([x, np.full((n, 3), 2.0)])  # features that never change: a singular covariance
    assert frechet(constant, constant) < 1e-10


def test_frechet_of_a_shift_and_of_a_stretch_is_exact() -> None:
    x = gaussian(4, 200, 8)
    shift = np.arange(8.0)
    assert frechet(x, x + shift) == pytest.approx((shift**2).sum(), rel=1e-10)
    centred = x - x.mean(0)
    assert frechet(centred, 3 * centred) == pytest.approx(4 * np.trace(np.cov(x, rowvar=False)), rel=1e-10)


def test_frechet_of_known_gaussians() -> None:
    """Between N(0, 1) and N(1, 4) in each of 4 dimensions it is 4 (1 + (2 - 1)^2) = 8."""
    x, y = gaussian(5, 40_000, 4), 1 + 2 * gaussian(6, 40_000, 4)
    assert frechet(x, y) == pytest.approx(8.0, rel=0.02)


def test_frechet_is_symmetric_and_sees_no_rotation() -> None:
    x, y = gaussian(7, 80, 12), gaussian(8, 90, 12) * 1.5
    rotation, _ = np.linalg.qr(gaussian(9, 12, 12))
    assert frechet(x, y) == pytest.approx(frechet(y, x), rel=1e-10)
    assert frechet(x @ rotation, y @ rotation) == pytest.approx(frechet(x, y), rel=1e-9)


def test_frechet_refuses_what_has_no_covariance() -> None:
    with pytest.raises(InputError, match="at least 2"):
        frechet(gaussian(0, 1, 3), gaussian(1, 5, 3))
    with pytest.raises(InputError, match="columns"):
        frechet(gaussian(0, 5, 3), gaussian(1, 5, 4))
    with pytest.raises(NonFiniteError, match="1 of 15"):
        frechet(np.where(np.arange(15).reshape(5, 3) == 4, np.nan, 1.0), gaussian(1, 5, 3))


# --- total variation --------------------------------------------------------------------------------------
def test_total_variation_of_exact_cases() -> None:
    groups = np.array([225, 225, 62, 14])
    assert total_variation(groups, groups[::-1]) == 0
    assert total_variation(groups, np.array([1, 2])) == 1
    assert total_variation(np.array([1, 1, 1, 2]), np.array([1, 2])) == pytest.approx(0.25)
    assert total_variation(np.array([1, 2, 2, 2]), np.array([1, 1, 1, 1, 2, 2])) == pytest.approx(5 / 12)


# --- intervals --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["wasserstein", "frechet"])
def test_intervals_cover_the_truth(kind: str) -> None:
    """95 % intervals of a known distance hold it in about 95 % of repetitions: not under 88 % of 100."""
    hits = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        if kind == "wasserstein":  # of N(0, 1) and N(1, 1)
            truth, x, y = 1.0, rng.normal(size=150), 1 + rng.normal(size=150)
            found = measure(wasserstein, x, y, seed)
        else:  # of N(0, 1) and N(1, 1) in 4 dimensions
            truth, x, y = 4.0, rng.normal(size=(150, 4)), 1 + rng.normal(size=(150, 4))
            found = measure(frechet, x, y, seed)
        low, high = found.interval
        hits += low <= truth <= high
    assert 88 <= hits <= 100


def test_samples_made_for_the_reference_are_redrawn_with_it() -> None:
    """Independent draws would see a distance of sampling where each sample is its partner, moved by 0.1."""
    rng = np.random.default_rng(0)
    reference = rng.normal(size=300)
    order = rng.permutation(300)
    values = reference[order] + 0.1
    paired = measure(wasserstein, values, reference, partners=order)
    assert paired.value == pytest.approx(0.1) and paired.interval == pytest.approx((0.1, 0.1))
    low, high = measure(wasserstein, values, reference).interval
    assert not low <= 0.1 <= high or high - low > 0.05
    same = measure(frechet, reference[order, None], reference[:, None], partners=order)
    assert same.value < 1e-10 and same.interval == pytest.approx((0, 0), abs=1e-10)


def test_paired_intervals_cover_the_truth() -> None:
    """Of N(0, 1) and the same numbers plus N(0.5, 0.3^2): W1 = 0.5 to a thousandth."""
    hits = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        reference = rng.normal(size=200)
        values = reference + rng.normal(0.5, 0.3, size=200)
        low, high = measure(wasserstein, values, reference, seed, partners=np.arange(200)).interval
        hits += low <= 0.5 <= high
    assert 88 <= hits <= 100


@pytest.mark.parametrize("answered", [np.arange(300), np.arange(0, 1000, 2)])
def test_paired_intervals_are_about_the_value_where_targets_lack_samples(answered: np.ndarray) -> None:
    """The value compares with the whole reference, those crystals too that nobody answered."""
    reference = np.linspace(2, 12, 1000)
    values = reference[answered] + np.random.default_rng(0).normal(0.3, 0.05, len(answered))
    found = measure(wasserstein, values, reference, partners=answered)
    assert found.interval[0] < found.value < found.interval[1] < found.value + 0.5


def test_shots_at_one_target_are_redrawn_together() -> None:
    """They err alike: 20 tell hardly more than one, and the interval is as wide as the value's spread."""

    def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        reference, common = rng.normal(5, 2, 100), rng.normal(0.5, 1, 100)
        return np.repeat(reference + common, 20) + rng.normal(0, 0.05, 2000), reference

    partners = np.repeat(np.arange(100), 20)
    spread = np.std([wasserstein(*drawn(seed)) for seed in range(100)])
    widths = [np.diff(measure(wasserstein, *drawn(k), partners=partners).interval)[0] for k in range(5)]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * spread, rel=0.25)


def test_one_answered_target_still_has_an_interval() -> None:
    """Most draws hold no sample: there is nothing to measure in them."""
    reference = np.linspace(0, 1, 50)
    low, high = measure(wasserstein, reference[:1], reference, partners=np.array([0])).interval
    assert 0 <= low <= high
    low, high = measure(frechet, reference[:2, None], reference[:, None], partners=np.arange(2)).interval
    assert 0 <= low <= high


def test_the_floor_is_what_halves_of_the_reference_differ_by() -> None:
    rng = np.random.default_rng(0)
    same = measure(wasserstein, rng.normal(size=400), rng.normal(size=400))
    apart = measure(wasserstein, 2 + rng.normal(size=400), rng.normal(size=400))
    assert same.floor is not None and apart.floor is not None
    assert same.value < 3 * same.floor < apart.value
    assert (same.count, same.reference_count) == (400, 400)
    assert measure(wasserstein, np.ones(3), np.zeros(3)).floor is None


def test_empty_sets_are_refused() -> None:
    with pytest.raises(InputError):
        wasserstein(np.array([]), np.ones(3))
    with pytest.raises(InputError):
        total_variation(np.array([]), np.ones(3))
