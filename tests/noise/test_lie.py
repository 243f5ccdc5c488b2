from typing import Literal

import pytest
import torch
from torch import Tensor

from crystalml.geometry import lie
from crystalml.geometry.lattice import gram
from crystalml.noise.lie import LIMIT, LieDDPM, LogLattice, PredictedCell
from crystalml.testing import hexagonal, perovskite, rand_crystals, random_rotation

Dof = Literal[6, 9]


def _normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _times(count: int, t: int) -> Tensor:
    return torch.full((count,), t)


@pytest.mark.parametrize("dof", [6, 9])
def test_coordinates_round_trip(dof: Dof) -> None:
    scale, lattice = LogLattice(dof=dof), rand_crystals(0, 200).lattice
    again = scale.decode(scale.encode(lattice))
    torch.testing.assert_close(gram(again), gram(lattice), atol=1e-9, rtol=1e-10)
    if dof == 9:
        torch.testing.assert_close(again, lattice, atol=1e-10, rtol=0)
    k = _normal(50).flatten(1)[:, 9 - dof :]
    torch.testing.assert_close(scale.encode(scale.decode(k)), k, atol=1e-10, rtol=0)


@pytest.mark.parametrize("dof", [6, 9])
def test_perturbed_coordinates_have_the_marginal(dof: Dof) -> None:
    noise, t = LieDDPM.linear(100, dof), 60
    lattice = hexagonal().lattice.expand(4000, 3, 3)
    k = noise.scale.encode(noise.perturb(lattice, _times(4000, t), _normal(4000)))
    bar = noise.ddpm.alpha_bar[t]
    expected = bar.sqrt() * noise.scale.encode(lattice[:1])[0]
    assert (k.mean(0) - expected).abs().max() < 4 * ((1 - bar) / 4000).sqrt()
    torch.testing.assert_close(k.var(0), (1 - bar).expand(dof), atol=0, rtol=0.1)
    clean = noise.perturb(lattice[:5], _times(5, 0), _normal(5))
    torch.testing.assert_close(gram(clean), gram(lattice[:5]), atol=1e-9, rtol=1e-9)


def test_the_published_schedule_leaves_a_remainder_that_standardising_takes_away() -> None:
    noise = LieDDPM.linear()
    assert noise.ddpm.alpha_bar[-1].sqrt().item() == pytest.approx(0.0751, abs=2e-4)
    volume = noise.scale.decode(noise.ddpm.alpha_bar[-1].sqrt() * torch.zeros(1, 6, dtype=torch.float64))
    assert torch.linalg.det(volume).item() == pytest.approx(torch.tensor(2.917 * 3**0.5).exp().item())


@pytest.mark.parametrize("dof", [6, 9])
def test_orientation_is_noise_without_effect_on_the_metric(dof: Dof) -> None:
    lattice, eps, t = rand_crystals(1, 30).lattice, _normal(30), _times(30, 80)
    six = LieDDPM.linear(100, 6).perturb(lattice, t, eps)
    other = LieDDPM.linear(100, dof).perturb(lattice, t, eps)
    torch.testing.assert_close(gram(six), gram(other), atol=1e-8, rtol=1e-8)
    assert (torch.linalg.det(other) > 0).all()
    turned = LieDDPM.linear(100, 6).perturb(lattice @ random_rotation(0).T, t, eps)
    torch.testing.assert_close(six, turned, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("dof", [6, 9])
def test_steps_with_the_true_cell_end_on_it(dof: Dof) -> None:
    noise, lattice = LieDDPM.linear(50, dof), rand_crystals(2, 8).lattice
    target = noise.target(lattice, _normal(8))
    x = noise.prior(_normal(8, 1))
    for t in range(50, 0, -1):
        x = noise.step(x, target, _times(8, t), _times(8, t - 1), _normal(8, 2 + t))
        assert (torch.linalg.det(x) > 0).all()
    torch.testing.assert_close(gram(x), gram(lattice), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(lie.polar(x)[0], target, atol=1e-9, rtol=0)


def test_no_prediction_collapses_the_cell() -> None:
    noise = LieDDPM.linear(50)
    absurd = 1e6 * torch.eye(3, dtype=torch.float64)[None] * torch.tensor([1.0, -1.0])[:, None, None]
    x = noise.step(perovskite().lattice.expand(2, 3, 3), absurd, _times(2, 1), _times(2, 0), _normal(2))
    k = noise.scale.encode(x)
    assert x.isfinite().all() and k.abs().max() <= LIMIT + 1e-6
    assert k[0, 5].item() == pytest.approx(LIMIT) and k[1, 5].item() == pytest.approx(-LIMIT)


@pytest.mark.parametrize("dof", [6, 9])
def test_tilt_moves_coordinates_against_the_slope(dof: Dof) -> None:
    """-variance x dE/dk, against finite differences in k; the energy is blind to rotations."""
    noise, g = LieDDPM.linear(50, dof), torch.diag(torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))
    lattice = noise.perturb(rand_crystals(3, 3).lattice, _times(3, 20), _normal(3))

    def energy(cell: Tensor) -> Tensor:
        return (gram(cell) * g).sum((-1, -2))

    leaf = lattice.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(leaf).sum(), leaf)
    moved = noise.tilt(lattice, 1e-3 * gradient, _times(3, 20), _times(3, 10))
    k, h = noise.scale.encode(lattice), 1e-6
    slopes = [
        (energy(noise.scale.decode(k + h * e)) - energy(noise.scale.decode(k - h * e))) / (2 * h)
        for e in torch.eye(dof, dtype=torch.float64)
    ]
    variance = noise.ddpm.variance(_times(3, 20), _times(3, 10), k)
    expected = k - 1e-3 * variance * torch.stack(slopes, -1)
    torch.testing.assert_close(noise.scale.encode(moved), expected, atol=1e-6, rtol=1e-5)
    assert (energy(moved) < energy(lattice)).all()


def test_a_predicted_cell_shows_nothing_of_the_data_until_the_end() -> None:
    noise, lattice = PredictedCell(20), rand_crystals(4, 5).lattice
    seen = noise.perturb(lattice, _times(5, 3), _normal(5))
    assert torch.equal(seen, noise.prior(_normal(5, 1))) and (seen - seen[:1]).abs().max() == 0
    target = noise.target(lattice, _normal(5))
    between = noise.step(seen, target, _times(5, 9), _times(5, 8), _normal(5))
    assert torch.equal(between, seen)
    end = noise.step(seen, target, _times(5, 1), _times(5, 0), _normal(5))
    torch.testing.assert_close(gram(end), gram(lattice), atol=1e-8, rtol=1e-8)
