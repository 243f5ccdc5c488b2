import pytest
import torch
from torch import Tensor

from crystalml.geometry.torus import logmap, wrap
from crystalml.noise.torus import TorusDDPM, _wind


def _normal(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def wrapped_variance(v: float) -> float:
    """E[d^2] of the shortest displacement d under the wrapped normal, by quadrature."""
    d = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000 - 0.5
    k = torch.arange(-8, 9, dtype=torch.float64)
    density = torch.exp(-((d[:, None] + k) ** 2) / (2 * v)).sum(-1)
    return float((density * d**2).sum() / density.sum())


def test_the_published_schedule_is_not_quite_uniform_and_ours_is() -> None:
    paper, ours = TorusDDPM.linear(last=2e-3), TorusDDPM.linear()
    assert paper.sigmas[-1].item() == pytest.approx(0.3087, abs=2e-4)
    first_mode = [torch.exp(-2 * torch.pi**2 * noise.variances[-1]).item() for noise in (paper, ours)]
    assert first_mode[0] == pytest.approx(0.153, abs=2e-3) and first_mode[1] < 0.01
    assert paper.variances[0] == 0 and (paper.variances.diff() > 0).all()


def test_the_target_leads_back() -> None:
    noise, x = TorusDDPM.linear(), torch.rand(500, 3, dtype=torch.float64)
    t = torch.arange(500) % 101
    noisy, target = noise.perturb(x, t, _normal(500, 0))
    torch.testing.assert_close(logmap(noisy + target - x), torch.zeros_like(x), atol=1e-12, rtol=0)
    assert target.abs().max() <= 0.5
    assert torch.equal(noisy[t == 0], x[t == 0])


def test_the_score_is_that_of_the_wrapped_normal() -> None:
    noise, t = TorusDDPM.linear(), torch.full((200,), 40)
    noisy, target = noise.perturb(torch.zeros(200, 3, dtype=torch.float64), t, _normal(200, 1))
    x = logmap(noisy).requires_grad_()
    k = torch.arange(-8, 9, dtype=torch.float64)
    log_density = torch.logsumexp(-((x[..., None] + k) ** 2) / (2 * noise.variances[40]), -1)
    (expected,) = torch.autograd.grad(log_density.sum(), x)
    torch.testing.assert_close(noise.score(target, t), expected, atol=1e-8, rtol=1e-8)


def oracle(x: Tensor) -> Tensor:
    """The way back to x_0 = 0."""
    return -logmap(x)


@pytest.mark.parametrize("last", [2e-3, 6e-3])
def test_exact_steps_keep_the_wrapped_normal_at_every_level(last: float) -> None:
    noise, count = TorusDDPM.linear(last=last), 25_000
    x, _ = noise.perturb(
        torch.zeros(count, 3, dtype=torch.float64), torch.full((count,), 100), _normal(count, 0)
    )
    for t in range(100, 1, -1):
        level = torch.full((count,), t)
        x = wrap(noise.step(x, oracle(x), level, level - 1, _normal(count, t)))
        ratio = logmap(x).square().mean().item() / wrapped_variance(float(noise.variances[t - 1]))
        assert ratio == pytest.approx(1, abs=0.02), f"level {t - 1}"
    last_step = wrap(
        noise.step(x, oracle(x), torch.ones_like(level), torch.zeros_like(level), _normal(count, 1))
    )
    assert logmap(last_step).abs().max() < 1e-12


def test_long_steps_keep_it_too_and_the_shortest_path_alone_does_not() -> None:
    noise, count = TorusDDPM.linear(), 200_000
    t, s = torch.full((count,), 100), torch.full((count,), 60)
    x, _ = noise.perturb(torch.zeros(count, 3, dtype=torch.float64), t, _normal(count, 0))
    exact = wrap(noise.step(x, oracle(x), t, s, _normal(count, 1)))
    v_t, v_s = noise.variances[100], noise.variances[60]
    naive = wrap(v_s / v_t * logmap(x) + (v_s * (v_t - v_s) / v_t).sqrt() * _normal(count, 1))
    expected = wrapped_variance(float(v_s))
    assert logmap(exact).square().mean().item() == pytest.approx(expected, rel=0.01)
    assert logmap(naive).square().mean().item() < 0.9 * expected


def test_one_number_draws_winding_and_noise() -> None:
    count, v = 400_000, 0.2
    delta = torch.full((count, 1), 0.4, dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    z = torch.randn(count, 1, dtype=torch.float64, generator=g)
    path, rest = _wind(delta, torch.full((count, 1), v, dtype=torch.float64), z)
    k = (path - delta).round()
    weight = torch.softmax(-((0.4 + torch.arange(-3.0, 4.0)) ** 2) / (2 * v), 0)
    for i, share in enumerate(weight.tolist()):
        picked = k == i - 3
        assert picked.double().mean().item() == pytest.approx(share, abs=4e-3)
        if share > 0.05:  # within each winding the noise is a standard normal again
            assert rest[picked].mean().abs() < 0.03 and rest[picked].var().item() == pytest.approx(
                1, abs=0.03
            )
    narrow = torch.full((count, 1), 1e-4, dtype=torch.float64)
    torch.testing.assert_close(_wind(delta, narrow, z)[1], z, atol=1e-9, rtol=1e-6)


def test_the_codes_steps_forget_where_they_were() -> None:
    noise, count = TorusDDPM.linear(last=2e-3, posterior="code"), 50_000
    x, t = torch.rand(count, 3, dtype=torch.float64), torch.full((count,), 100)
    y = wrap(noise.step(x, oracle(x), t, t - 1, _normal(count, 0)))
    torch.testing.assert_close(y, wrap(noise.betas[99].sqrt() * _normal(count, 0)), atol=1e-12, rtol=0)
    assert logmap(y).std() < 0.045 < 0.3 < noise.sigmas[99]
    one = torch.ones_like(t)
    assert logmap(noise.step(x, oracle(x), one, 0 * one, _normal(count, 1))).abs().max() < 1e-12


def test_longer_steps_reach_beyond_the_prediction_but_for_the_last() -> None:
    noise = TorusDDPM.linear(posterior="code", reach=1.5)
    x, way = torch.zeros(2, 3, dtype=torch.float64), torch.full((2, 3), 0.1, dtype=torch.float64)
    t, s = torch.tensor([50, 50]), torch.tensor([49, 0])
    moved = noise.step(x, way, t, s, torch.zeros_like(x))
    torch.testing.assert_close(moved, way * torch.tensor([[1.5], [1.0]], dtype=torch.float64))
