import pytest
import torch

from crystalml.noise.gaussian import GaussianDDPM
from crystalml.noise.schedule import linear_betas


@pytest.fixture(params=["cosine", "linear"])
def noise(request: pytest.FixtureRequest) -> GaussianDDPM:
    return GaussianDDPM.cosine(200) if request.param == "cosine" else GaussianDDPM(linear_betas(200))


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_parametrisations_round_trip(noise: GaussianDDPM) -> None:
    x_0, eps, t = _normal(6, 3, 3) * 5, _normal(6, 3, 3, seed=1), torch.tensor([1, 5, 50, 100, 150, 190])
    x_t = noise.perturb(x_0, t, eps)
    torch.testing.assert_close(noise.clean(x_t, eps, t), x_0, atol=1e-7, rtol=1e-7)
    bar = noise.alpha_bar[t][:, None, None]
    torch.testing.assert_close(noise.score(eps, t), -(x_t - bar.sqrt() * x_0) / (1 - bar))


def test_unit_step_is_ddpms(noise: GaussianDDPM) -> None:
    """Algorithm 2 of Ho et al., written with beta_t, abar_t and beta-tilde_t."""
    t, x_t, eps, z = (
        torch.tensor([3, 120]),
        _normal(2, 3, 3),
        _normal(2, 3, 3, seed=1),
        _normal(2, 3, 3, seed=2),
    )
    beta, bar, before = (
        table[:, None, None] for table in (noise.betas[t], noise.alpha_bar[t], noise.alpha_bar[t - 1])
    )
    tilde = beta * (1 - before) / (1 - bar)
    expected = (x_t - beta / (1 - bar).sqrt() * eps) / (1 - beta).sqrt() + tilde.sqrt() * z
    torch.testing.assert_close(noise.step(x_t, eps, t, t - 1, z), expected)


def test_any_step_keeps_the_marginal(noise: GaussianDDPM) -> None:
    """From q(x_t | x_0) a step with the true noise lands in q(x_s | x_0): mean and variance exactly."""
    t, s, x_0 = torch.tensor([180]), torch.tensor([60]), torch.full((1, 3, 3), 2.0, dtype=torch.float64)
    bar_t, bar_s = noise.alpha_bar[t], noise.alpha_bar[s]
    slope = noise.step(
        noise.perturb(x_0, t, torch.ones_like(x_0)), torch.ones_like(x_0), t, s, torch.zeros_like(x_0)
    )
    mean = noise.step(
        noise.perturb(x_0, t, torch.zeros_like(x_0)), torch.zeros_like(x_0), t, s, torch.zeros_like(x_0)
    )
    torch.testing.assert_close(mean, bar_s.sqrt() * x_0)
    variance = (slope - mean) ** 2 + noise.variance(t, s, x_0)
    torch.testing.assert_close(variance, (1 - bar_s).expand_as(variance))
    assert bar_t < bar_s


def test_last_step_with_the_true_noise_returns_the_data(noise: GaussianDDPM) -> None:
    x_0, eps, t = _normal(4, 3, 3) * 5, _normal(4, 3, 3, seed=1), torch.full((4,), 20)
    x_s = noise.step(noise.perturb(x_0, t, eps), eps, t, torch.zeros_like(t), torch.ones_like(x_0))
    torch.testing.assert_close(x_s, x_0)
