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
