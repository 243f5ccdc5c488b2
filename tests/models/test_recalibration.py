"""Recalibrated quantiles: conformal whatever the draws are worth, in order, and exact in known cases."""

import numpy as np
import pytest
import torch

from crystalml.errors import InputError
from crystalml.models.recalibration import Recalibration

G = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("width", [0.1, 1.0, 2.0])
def test_coverage_whatever_the_draws_are_worth(width: float) -> None:
    """Draws too narrow, right and too wide, off by a half: the intervals hold all the same."""

    def crystals(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        centre, y = torch.randn(2, n, generator=G)
        size = 0.5 + torch.rand(n, generator=G)
        draws = centre[:, None] + 0.5 + width * size[:, None] * torch.randn(n, 20, generator=G)
        return draws, draws.std(1), centre + size * y

    one = Recalibration(spread=False)
    one.fit(*crystals(3000))
    draws, scale, y = crystals(20_000)
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    found = one(draws, scale, levels)
    np.testing.assert_allclose((y[:, None] <= found).float().mean(0), levels, atol=0.025)
    assert int(one.fitted) == 3000


def test_small_sets_are_covered_in_the_mean() -> None:
    """The finite-sample rank: without it, 19 crystals would cover 85 to 90 %."""
    hits = []
    for _ in range(400):
        one = Recalibration()
        one.fit(torch.zeros(19, 1), torch.ones(19), torch.randn(19, generator=G))
        low, high = one(torch.zeros(1, 1), torch.ones(1), torch.tensor([0.05, 0.95]))[0]
        y = torch.randn(500, generator=G)
        hits.append(float(((low <= y) & (y <= high)).float().mean()))
    assert np.mean(hits) == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("width", [0.0, 0.5])
@pytest.mark.parametrize("n", [4, 10, 18, 40])
def test_levels_without_a_rank_are_held_by_normal_errors(n: int, width: float) -> None:
    """Clamped to the largest of ten errors, 5 % to 95 % would hold 82 %; of 40, 0.5 % to 99.5 % only 95 %."""
    held = []
    for _ in range(600):
        draws = width * torch.randn(n + 200, 20, generator=G) if width else torch.zeros(n + 200, 1)
        y, scale = torch.randn(n + 200, generator=G), torch.full((n + 200,), 0.3)
        one = Recalibration(spread=not width)
        one.fit(draws[:n], scale[:n], y[:n])
        found = one(draws[n:], scale[n:], torch.tensor([0.005, 0.05, 0.95, 0.995]))
        held.append((y[n:, None] <= found).float().mean(0).numpy())
    least, low, high, most = np.mean(held, 0)
    assert high - low == pytest.approx(0.9, abs=0.025) and most - least > 0.98


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_errors_that_happen_to_be_nothing_claim_no_certainty(n: int) -> None:
    """Crystals missing from four err by 1, the spread of the values, whatever the scale is."""
    one, scale = Recalibration(), torch.full((n,), 1e-6 if n else 1.0)
    one.fit(torch.zeros(n, 1), scale, 1e-9 * torch.ones(n))
    low, left, middle, right, high = one(
        torch.full((1, 1), 3.0),
        torch.full((1,), 1e-6 if n else 1.0),
        torch.tensor([0.05, 0.16, 0.5, 0.84, 0.95]),
    )[0]
    assert middle == pytest.approx(3.0, abs=1e-5) and low < left < 3 < right < high
    assert high - middle == pytest.approx(2.1318 * np.sqrt(1 - n / 4), rel=1e-3)  # t of four degrees


def test_where_all_levels_have_ranks_errors_of_any_distribution_decide() -> None:
    one, y = Recalibration(), torch.randn(399, generator=G).exp()
    one.fit(torch.zeros(399, 1), torch.ones(399), y)
    torch.testing.assert_close(one.offsets, y.sort().values[1::2], rtol=0, atol=0)


def test_quantiles_rise_and_do_not_depend_on_their_company() -> None:
    one = Recalibration()
    one.offsets.copy_(torch.randn(199, generator=G))  # crossing offsets
    draws, scale, levels = torch.randn(5, 7, generator=G), torch.ones(5), torch.linspace(0.005, 0.995, 50)
    all_of_them = one(draws, scale, levels)
    assert (all_of_them.diff(dim=1) >= 0).all()
    torch.testing.assert_close(one(draws, scale, levels[20:21]), all_of_them[:, 20:21])
    torch.testing.assert_close(one(draws[2:3], scale[2:3], levels), all_of_them[2:3])


def test_before_fitting_draws_stand_for_themselves_and_points_for_normal_distributions() -> None:
    draws = torch.arange(101.0)[None]
    found = Recalibration(spread=False)(draws, torch.ones(1), torch.tensor([0.005, 0.25, 0.9]))
    torch.testing.assert_close(found, torch.tensor([[0.5, 25.0, 90.0]]))
    normal = Recalibration()(torch.tensor([[3.0]]), torch.tensor([2.0]), torch.tensor([0.05, 0.5, 0.95]))
    torch.testing.assert_close(
        normal, torch.tensor([[3 - 2 * 1.64485, 3.0, 3 + 2 * 1.64485]]), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("level", [0.0, 1.0, 0.001, float("nan")])
def test_levels_beyond_the_table_are_refused(level: float) -> None:
    with pytest.raises(InputError, match="between"):
        Recalibration()(torch.zeros(1, 1), torch.ones(1), torch.tensor([level]))
