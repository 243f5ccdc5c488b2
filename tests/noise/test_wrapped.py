import math

import pytest
import torch

from crystalml.noise.wrapped import WrappedNormal, score_norms, wrapped_score


def _density(x: torch.Tensor, sigma: float) -> torch.Tensor:
    k = torch.arange(-30, 31, dtype=x.dtype)
    return torch.exp(-((x[:, None] + k) ** 2) / (2 * sigma**2)).sum(-1)


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.2, 0.5])
def test_score_is_the_gradient_of_the_log_density(sigma: float) -> None:
    x = torch.linspace(-0.499, 0.499, 41, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(_density(x, sigma).log().sum(), x)
    actual = wrapped_score(x.detach()[:, None], torch.full((41, 1), sigma, dtype=torch.float64))[:, 0]
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)


def test_score_is_periodic_and_finite_where_the_naive_quotient_is_not() -> None:
    sigma = torch.full((1, 1), 0.005)
    far = torch.tensor([[0.45]])
    assert torch.exp(-(far**2) / (2 * sigma**2)) == 0  # the naive quotient would be 0 / 0
    score = wrapped_score(far, sigma)
    torch.testing.assert_close(score, -far / sigma**2)
    torch.testing.assert_close(wrapped_score(far + 3, sigma), score, rtol=1e-4, atol=0)


def test_norms_are_the_published_table() -> None:
    sigmas = torch.tensor([0.0, 0.01, 0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
    scaled = score_norms(sigmas) * sigmas**2
    expected = torch.tensor([1.0, 1.0, 0.763, 0.210, 0.0229, 0.00102], dtype=torch.float64)
    torch.testing.assert_close(scaled[1:], expected, rtol=5e-3, atol=0)
    assert score_norms(sigmas)[-1].item() == pytest.approx(
        (4 * math.pi) ** 2 / 2 * math.exp(-(math.pi**2)), rel=1e-2
    )
    assert score_norms(sigmas)[0] == 1


def test_narrow_and_wide_branches_meet() -> None:
    """Quadrature just above the switch agrees with 1 / sigma^2 just below it."""
    sigmas = torch.tensor([0.0499, 0.0501], dtype=torch.float64)
    torch.testing.assert_close(
        score_norms(sigmas) * sigmas**2, torch.ones(2, dtype=torch.float64), atol=1e-9, rtol=0
    )


def test_normalised_target_has_unit_mean_square_at_every_level() -> None:
    noise = WrappedNormal.geometric(100)
    generator = torch.Generator().manual_seed(0)
    for t in (1, 30, 60, 90, 100):
        eps = torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
        _, target = noise.perturb(torch.zeros_like(eps), torch.full((len(eps),), t), eps)
        assert target.square().mean().item() == pytest.approx(1, abs=0.01)


def test_clean_level_is_left_alone() -> None:
    noise, x = WrappedNormal.geometric(10), torch.rand(4, 3)
    noisy, target = noise.perturb(x, torch.zeros(4, dtype=torch.long), torch.randn(4, 3))
    torch.testing.assert_close(noisy, x)
    assert (target == 0).all()


def test_score_round_trips_through_the_normalised_prediction() -> None:
    noise = WrappedNormal.geometric(100)
    t, eps = (
        torch.full((50,), 40),
        torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    )
    _, target = noise.perturb(torch.zeros_like(eps), t, eps)
    sigma = noise.sigmas[40]
    torch.testing.assert_close(noise.score(target, t), wrapped_score(sigma * eps, sigma.expand_as(eps)))
