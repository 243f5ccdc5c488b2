import pytest
import torch

from crystalml.geometry.torus import logmap
from crystalml.noise.product import CrystalNoise
from crystalml.noise.rng import SampleNoise
from crystalml.testing import rand_crystals


def test_targets_describe_the_perturbation() -> None:
    noise, x = CrystalNoise.diffcsp(50), rand_crystals(0, 6)
    t = torch.tensor([1, 5, 10, 20, 40, 50])
    noisy, target = noise.perturb(x, t, torch.Generator().manual_seed(0))
    assert target.lattice is not None and target.frac is not None
    torch.testing.assert_close(noise.lattice.perturb(x.lattice, t, target.lattice), noisy.lattice)
    first = x.index == 0  # at sigma = 0.005 the wrapped score is the Gaussian one
    sigma = noise.frac.sigmas[1]
    torch.testing.assert_close(
        noise.frac.score(target.frac, t[x.index])[first],
        -logmap(noisy.frac - x.frac)[first] / sigma**2,
        rtol=1e-4,
        atol=1e-4,
    )


def test_clean_level_changes_nothing() -> None:
    noise, x = CrystalNoise.diffcsp(50), rand_crystals(1, 4)
    noisy, _ = noise.perturb(x, torch.zeros(4, dtype=torch.long), torch.Generator().manual_seed(0))
    torch.testing.assert_close(noisy.frac, x.frac)
    torch.testing.assert_close(noisy.lattice, x.lattice)


@pytest.mark.parametrize("centered", [True, False])
def test_centred_noise_does_not_move_the_crystal(centered: bool) -> None:
    noise, x = CrystalNoise.diffcsp(50, centered=centered), rand_crystals(2, 40)
    t = torch.full((40,), 20)
    noisy, target = noise.perturb(x, t, torch.Generator().manual_seed(0))
    assert target.frac is not None
    drift = torch.zeros(40, 3, dtype=x.dtype).index_add(0, x.index, logmap(noisy.frac - x.frac))
    mean = torch.zeros(40, 3, dtype=x.dtype).index_add(0, x.index, target.frac)
    assert (drift.abs().max() < 1e-9) == centered
    assert (mean.abs().max() < 1e-9) == centered


def test_prior_covers_the_torus_and_keeps_the_species() -> None:
    x = rand_crystals(3, 100)
    prior = CrystalNoise.diffcsp(50).prior(x, SampleNoise(torch.arange(100), x.num_atoms))
    assert torch.equal(prior.numbers, x.numbers)
    assert abs(prior.frac.mean() - 0.5) < 0.05 and abs(prior.frac.var() - 1 / 12) < 0.01
    assert abs(prior.lattice.mean()) < 0.1 and abs(prior.lattice.var() - 1) < 0.1
