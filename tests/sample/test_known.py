"""What is known comes out as it went in, and is noisy on the way like everything else."""

from collections.abc import Callable

import torch

from crystalml.geometry.torus import logmap
from crystalml.models.model import CrystalModel
from crystalml.noise.product import CrystalNoise
from crystalml.sample.base import as_draws
from crystalml.sample.known import Known
from crystalml.sample.predictor_corrector import PredictorCorrector
from crystalml.sample.probability_flow import ProbabilityFlow
from crystalml.testing import rand_crystals

NOISE = CrystalNoise.diffcsp(1000)


def test_known_parts_come_back_and_the_rest_is_drawn(tiny_model: Callable[..., CrystalModel]) -> None:
    model, x, seeds = tiny_model(dtype=torch.float64), rand_crystals(3, 3), torch.arange(3)
    sites = torch.arange(len(x.numbers)) % 2 == 0
    cells = torch.tensor([True, False, True])
    for sampler in (ProbabilityFlow(NOISE, 5), PredictorCorrector(NOISE, 5)):
        hold = Known(NOISE, x, cells, sites, as_draws(seeds, x))
        *path, end = sampler.trajectory(model.denoise, x, seeds, hold=hold)
        assert torch.equal(end.lattice[cells], x.lattice[cells])
        assert torch.equal(end.frac[sites], x.frac[sites])
        assert logmap(end.frac[~sites] - x.frac[~sites]).abs().max() > 1e-3
        assert not torch.equal(end.lattice[1], x.lattice[1])
        middle = NOISE.frac.sigmas[600]
        off = logmap(path[2].frac - x.frac)[sites]  # 1000, 800, 600
        assert 0.3 * middle < off.std() < 3 * middle


def test_a_sample_still_depends_on_its_seed_alone(tiny_model: Callable[..., CrystalModel]) -> None:
    model, x, seeds = tiny_model(dtype=torch.float64), rand_crystals(3, 3), torch.tensor([7, 8, 9])
    none, every = torch.zeros(len(x.numbers), dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    flow = ProbabilityFlow(NOISE, 4)
    together = flow.sample(model.denoise, x, seeds, None, Known(NOISE, x, every, none, as_draws(seeds, x)))
    one, alone = x[1], seeds[1:2]
    hold = Known(NOISE, one, every[:1], none[: len(one.numbers)], as_draws(alone, one))
    torch.testing.assert_close(together[1].frac, flow.sample(model.denoise, one, alone, None, hold).frac)
