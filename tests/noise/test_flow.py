"""Flow matching: paths are straight, their ends are data and prior, and the exact velocity joins them."""

from __future__ import annotations

import math

import pytest
import torch

from crystalml.crystal import CrystalBatch, Tangent
from crystalml.errors import UnsupportedError
from crystalml.geometry.torus import logmap, wrap
from crystalml.noise.flow import GeodesicFlow, LinearFlow
from crystalml.noise.product import CrystalNoise
from crystalml.sample.solvers import solver
from crystalml.testing import rand_crystals

NOISE = CrystalNoise.flow(100, centered=False)


def perturbed(x: CrystalBatch, t: int, noise: CrystalNoise = NOISE) -> tuple[CrystalBatch, Tangent]:
    """With the same numbers at every level."""
    return noise.perturb(x, torch.full((len(x),), t), torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("t", "s"), [(100, 0), (80, 30), (10, 60)])
def test_the_target_leads_from_any_level_to_any_other(t: int, s: int) -> None:
    x = rand_crystals(0, 8)
    here, velocity = perturbed(x, t)
    there, _ = perturbed(x, s)
    from_, to = torch.full((8,), t), torch.full((8,), s)
    assert velocity.lattice is not None and velocity.frac is not None
    lattice = NOISE.lattice.step(here.lattice, velocity.lattice, from_, to, torch.zeros_like(x.lattice))
    frac = NOISE.frac.step(here.frac, velocity.frac, from_[x.index], to[x.index], torch.zeros_like(x.frac))
    torch.testing.assert_close(lattice, there.lattice)
    assert logmap(frac - there.frac).abs().max() < 1e-9


def test_ends_of_the_paths() -> None:
    x = rand_crystals(1, 400)
    clean, _ = perturbed(x, 0)
    torch.testing.assert_close(clean.lattice, x.lattice)
    assert logmap(clean.frac - x.frac).abs().max() < 1e-9
    noisy, velocity = perturbed(x, 100)
    assert abs(noisy.lattice.mean()) < 0.1 and abs(noisy.lattice.std() - 1) < 0.05
    for values in (noisy.frac, wrap(noisy.frac - x.frac)):  # uniform, and so from the crystal
        counts = torch.histc(values, 10, 0, 1) / values.numel()
        assert (counts - 0.1).abs().max() < 0.02
    assert velocity.frac is not None
    assert abs(velocity.frac.std() - 1) < 0.03 and velocity.frac.abs().max() <= math.sqrt(3)


def test_centring_takes_the_mean_out_of_the_velocity_alone() -> None:
    x = rand_crystals(2, 40)
    free, velocity = perturbed(x, 60)
    same, centred = perturbed(x, 60, CrystalNoise.flow(100, centered=True))
    assert torch.equal(free.frac, same.frac)  # a network blind to translations sees no difference
    assert velocity.frac is not None and centred.frac is not None
    mean = torch.zeros(40, 3, dtype=x.dtype).index_add(0, x.index, centred.frac)
    assert mean.abs().max() < 1e-9
    drift = velocity.frac - centred.frac
    assert (drift - drift[x.offsets[x.index]]).abs().max() < 1e-9


def test_paths_turn_and_shift_with_the_crystal() -> None:
    x = rand_crystals(3, 5)
    turn = torch.linalg.qr(torch.randn(5, 3, 3, dtype=x.dtype)).Q
    t, eps = torch.full((5,), 40), torch.randn(5, 3, 3, dtype=x.dtype)
    moved = NOISE.lattice.perturb(x.lattice @ turn, t, eps @ turn)
    torch.testing.assert_close(moved, NOISE.lattice.perturb(x.lattice, t, eps) @ turn)
    here, velocity = perturbed(x, 40)
    there, same = perturbed(x.replace(frac=wrap(x.frac + 0.3)), 40)
    assert logmap(there.frac - here.frac - 0.3).abs().max() < 1e-9
    torch.testing.assert_close(same.frac, velocity.frac)


@pytest.mark.parametrize("steps", [5, 100])
def test_the_exact_velocity_of_one_crystal_carries_the_prior_to_it(steps: int) -> None:
    """All mass at (L_0, F_0): v = (L - L_0) / tau and u = logmap(F - F_0) / tau."""
    x = rand_crystals(4, 6)

    def velocity(noisy: CrystalBatch, t: torch.Tensor) -> Tangent:
        tau = t[:, None, None].to(x.dtype) / 100
        flight = logmap(noisy.frac - x.frac) / tau[x.index, 0]
        return Tangent(lattice=(noisy.lattice - x.lattice) / tau / 5, frac=math.sqrt(12) * flight)

    out = solver("euler", NOISE, steps).sample(velocity, x, torch.arange(6))
    torch.testing.assert_close(out.lattice, x.lattice)
    assert logmap(out.frac - x.frac).abs().max() < 1e-6


def test_learned_mean_of_two_sites_is_followed_to_one_of_them() -> None:
    """Coordinates at 0 or 0.5 with equal shares: the exact mean velocity ends at both equally often."""
    sites = torch.tensor([0.0, 0.5], dtype=torch.float64)
    x = rand_crystals(5, 300, max_atoms=4)

    def velocity(noisy: CrystalBatch, t: torch.Tensor) -> Tangent:
        tau = (t.to(x.dtype) / 100)[x.index][:, None, None]
        u = logmap(noisy.frac[..., None] - sites) / tau
        weight = (u.abs() <= 0.5 + 1e-9).to(x.dtype)  # p(F_tau | site) is flat where site can lead
        mean = (u * weight).sum(-1) / weight.sum(-1).clamp(min=1e-9)
        return Tangent(lattice=torch.zeros_like(noisy.lattice), frac=math.sqrt(12) * mean)

    out = solver("euler", NOISE, 100).sample(velocity, x, torch.arange(300)).frac
    near = logmap(out[..., None] - sites).abs()
    assert near.amin(-1).max() < 0.02
    share = (near[..., 0] < near[..., 1]).double().mean()
    assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(out.numel())


def test_scores_are_refused() -> None:
    z = torch.zeros(1, 3)
    for call in (
        lambda: GeodesicFlow().score(z, torch.ones(1)),
        lambda: GeodesicFlow().langevin(z, z, torch.ones(1), z, z),
        lambda: LinearFlow().tilt(torch.zeros(1, 3, 3), torch.zeros(1, 3, 3), torch.ones(1), torch.ones(1)),
    ):
        with pytest.raises(UnsupportedError, match="no scores"):
            call()
    with pytest.raises(UnsupportedError):
        solver("heun", NOISE)
