import torch
from scipy import stats

from crystalml.noise.rng import SampleNoise


def _noise(seeds: list[int], counts: list[int]) -> SampleNoise:
    return SampleNoise(torch.tensor(seeds), torch.tensor(counts))


def test_a_sample_draws_the_same_in_any_company() -> None:
    together, alone = _noise([7, 8, 9], [2, 5, 1]), _noise([8], [5])
    assert torch.equal(together.atom_normal(3)[2:7], alone.atom_normal(3))
    assert torch.equal(together.atom_uniform(0)[2:7], alone.atom_uniform(0))
    assert torch.equal(together.lattice_normal(5)[1:2], alone.lattice_normal(5))


def test_fewer_atoms_draw_a_prefix() -> None:
    assert torch.equal(_noise([3], [4]).atom_normal(1)[:2], _noise([3], [2]).atom_normal(1))


def test_seeds_and_draws_are_independent() -> None:
    noise = _noise(list(range(-50, 50)), [50] * 100)
    a, b = noise.atom_normal(1).flatten(), noise.atom_normal(2).flatten()
    by_seed = noise.atom_normal(1).unflatten(0, (100, 50)).flatten(1)
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.03
    off = torch.corrcoef(by_seed) - torch.eye(100)
    assert off.abs().max() < 0.45 and off.std() < 0.1


def test_distributions() -> None:
    noise = _noise(list(range(200)), [100] * 200)
    assert stats.kstest(noise.atom_normal(1).flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(noise.atom_uniform(1).flatten().numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(noise.lattice_normal(1).flatten().numpy(), "norm").pvalue > 1e-3
    uniform = noise.atom_uniform(0)
    assert uniform.min() > 0 and uniform.max() < 1
