import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch, Tangent
from crystalml.errors import InputError
from crystalml.geometry.torus import logmap
from crystalml.guidance import EnergyGuidance
from crystalml.models.model import CrystalModel
from crystalml.noise.product import CrystalNoise
from crystalml.noise.wrapped import wrapped_score
from crystalml.sample.predictor_corrector import PredictorCorrector
from crystalml.testing import assert_close_crystals, rand_crystals

Order = Literal["code", "paper"]


def oracle(noise: CrystalNoise, data: CrystalBatch) -> Callable[[CrystalBatch, Tensor], Tangent]:
    """The exact denoiser of a delta distribution at `data`."""

    def denoise(x: CrystalBatch, t: Tensor) -> Tangent:
        sigma = noise.frac.sigmas[t][x.index][:, None].to(x.dtype)
        score = wrapped_score(x.frac - data.frac, sigma.expand_as(x.frac))
        bar = noise.lattice.alpha_bar[t][:, None, None].to(x.dtype)
        eps = (x.lattice - bar.sqrt() * data.lattice) / (1 - bar).sqrt()
        return Tangent(lattice=eps, frac=score / noise.frac.norms[t][x.index][:, None].sqrt().to(x.dtype))

    return denoise


@pytest.mark.parametrize("order", ["code", "paper"])
@pytest.mark.parametrize("steps", [None, 50])
def test_exact_score_of_a_delta_ends_on_it(order: Order, steps: int | None) -> None:
    noise, data = CrystalNoise.diffcsp(200), rand_crystals(0, 4)
    sampler = PredictorCorrector(noise, steps, order)
    x = sampler.sample(oracle(noise, data), data, torch.arange(4))
    assert logmap(x.frac - data.frac).abs().max() < 1e-2
    torch.testing.assert_close(x.lattice, data.lattice, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("order", "spread"), [("code", 1.11), ("paper", 1.01)])
def test_the_codes_coarse_corrector_widens_the_path(order: Order, spread: float) -> None:
    """With gamma / sigma_1^2 = 0.4 the code's Langevin step is 0.4 sigma^2 at every level."""
    noise, data = CrystalNoise.diffcsp(400), rand_crystals(0, 300, max_atoms=8)
    path = PredictorCorrector(noise, order=order).trajectory(oracle(noise, data), data, torch.arange(300))
    for level, x in enumerate(path):
        if level == 200:
            t = 200
            ratio = logmap(x.frac - data.frac).std() / noise.frac.sigmas[t]
            assert ratio.item() == pytest.approx(spread, abs=0.05)
            return
    raise AssertionError("the path ended early")


def test_a_sample_depends_on_its_seed_alone(tiny_model: Callable[..., CrystalModel]) -> None:
    model, x = tiny_model(dtype=torch.float64), rand_crystals(1, 4)
    sampler = PredictorCorrector(CrystalNoise.diffcsp(20))
    seeds = torch.tensor([5, 6, 7, 8])
    together = sampler.sample(model.denoise, x, seeds)
    alone = sampler.sample(model.denoise, x[2], seeds[2:3])
    assert_close_crystals(together[2], alone, atol=1e-6)
    other = sampler.sample(model.denoise, x[2], torch.tensor([99]))
    assert logmap(other.frac - alone.frac).abs().max() > 1e-3


@pytest.mark.parametrize("order", ["code", "paper"])
def test_zero_guidance_is_no_guidance_bit_for_bit(
    order: Order, tiny_model: Callable[..., CrystalModel]
) -> None:
    model, x, seeds = tiny_model(), rand_crystals(2, 3, dtype=torch.float32), torch.arange(3)
    sampler = PredictorCorrector(CrystalNoise.diffcsp(20), order=order)
    plain = sampler.sample(model.denoise, x, seeds)
    zero = sampler.sample(model.denoise, x, seeds, EnergyGuidance(model, 0.0))
    strong = sampler.sample(model.denoise, x, seeds, EnergyGuidance(model, 5.0))
    assert torch.equal(plain.frac, zero.frac) and torch.equal(plain.lattice, zero.lattice)
    assert not torch.equal(plain.frac, strong.frac) and not torch.equal(plain.lattice, strong.lattice)


def test_guidance_pulls_downhill() -> None:
    """An energy (F - 0.25)^2 tilts samples of a broad distribution towards 0.25."""
    noise, x = CrystalNoise.diffcsp(50), rand_crystals(3, 200, max_atoms=3)

    def broad(y: CrystalBatch, t: Tensor) -> Tangent:
        return Tangent(lattice=y.lattice, frac=torch.zeros_like(y.frac))

    def guide(y: CrystalBatch, t: Tensor) -> Tangent:
        return Tangent(frac=40 * logmap(y.frac - 0.25))

    sampler = PredictorCorrector(noise, corrector=False)
    free = sampler.sample(broad, x, torch.arange(200))
    pulled = sampler.sample(broad, x, torch.arange(200), guide)
    assert logmap(pulled.frac - 0.25).square().mean() < 0.5 * logmap(free.frac - 0.25).square().mean()


def test_evaluations_are_counted() -> None:
    noise, x, calls = CrystalNoise.diffcsp(30), rand_crystals(4, 1), []

    def count(y: CrystalBatch, t: Tensor) -> Tangent:
        calls.append(int(t))
        return Tangent(lattice=torch.zeros_like(y.lattice), frac=torch.zeros_like(y.frac))

    for sampler in (
        PredictorCorrector(noise),
        PredictorCorrector(noise, 7, "paper"),
        PredictorCorrector(noise, 7, corrector=False),
    ):
        calls.clear()
        frames = list(sampler.trajectory(count, x, torch.tensor([0])))
        assert len(calls) == sampler.evaluations and min(calls) >= 1 and max(calls) == 30
        assert len(frames) == len(sampler.levels())


@pytest.mark.parametrize("steps", [0, -3, 31])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(InputError, match=str(steps)):
        PredictorCorrector(CrystalNoise.diffcsp(30), steps)


def test_levels_run_from_the_prior_to_the_data() -> None:
    levels = PredictorCorrector(CrystalNoise.diffcsp(1000), 200).levels()
    assert levels[0] == 1000 and levels[-1] == 0 and len(set(levels)) == 201
    assert math.isclose(levels[100], 500)
