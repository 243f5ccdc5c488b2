"""The flow carries exact scores to exact laws, at the order it claims."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch, Tangent
from crystalml.errors import InputError, UnsupportedError
from crystalml.geometry.torus import logmap
from crystalml.guidance import EnergyGuidance
from crystalml.models.model import CrystalModel
from crystalml.noise.product import CrystalNoise
from crystalml.noise.wrapped import wrapped_score
from crystalml.sample.probability_flow import Method, ProbabilityFlow
from crystalml.testing import assert_close_crystals, rand_crystals

NOISE = CrystalNoise.diffcsp(1000)
CELL, WIDTH, SITE = 5.0, 0.6, 0.04  # mean and spread of lattice entries (Angstrom); spread of coordinates
METHODS: list[Method] = ["euler", "heun", "multistep"]


def gaussian(noise: CrystalNoise, centre: Tensor) -> Callable[[CrystalBatch, Tensor], Tangent]:
    """The exact denoiser of lattices N(CELL 1, WIDTH^2) and wrapped-normal coordinates (centre, SITE)."""

    def denoise(x: CrystalBatch, t: Tensor) -> Tangent:
        bar = noise.lattice.alpha_bar[t][:, None, None].to(x.dtype)  # type: ignore[attr-defined]
        mean = bar.sqrt() * CELL * torch.eye(3, dtype=x.dtype)
        eps = (1 - bar).sqrt() * (x.lattice - mean) / (bar * WIDTH**2 + 1 - bar)
        sigma = (noise.frac.sigmas[t] ** 2 + SITE**2).sqrt()[x.index][:, None].to(x.dtype)
        score = wrapped_score(x.frac - centre, sigma.expand_as(x.frac))
        norms = noise.frac.norms[t][x.index][:, None].sqrt().to(x.dtype)  # type: ignore[attr-defined]
        return Tangent(lattice=eps, frac=score / norms)

    return denoise


def crystals(count: int, atoms: int = 4) -> CrystalBatch:
    numbers, lattice = torch.full((count * atoms,), 6), torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    frac = torch.zeros(count * atoms, 3, dtype=torch.float64)
    return CrystalBatch(numbers, frac, lattice, torch.full((count,), atoms))


@pytest.mark.parametrize("method", METHODS)
def test_moments_of_a_gaussian_and_of_a_wrapped_normal(method: Method) -> None:
    x = crystals(1000)
    path = ProbabilityFlow(NOISE, 50, method)
    out = path.sample(gaussian(NOISE, torch.tensor(0.3)), x, torch.arange(len(x)))
    error = 5 / math.sqrt(len(x))
    off = out.lattice - CELL * torch.eye(3, dtype=torch.float64)
    assert off.mean(0).abs().max() < WIDTH * error
    assert off.std().item() == pytest.approx(WIDTH, rel=0.05)
    gap = logmap(out.frac - 0.3)
    assert gap.mean().abs() < SITE * error
    assert gap.std().item() == pytest.approx(SITE, rel=0.12)  # the prior is uniform only to 1 in 100


class UpTo(ProbabilityFlow):
    """Ends at level 10, short of the last step, which is Euler's whatever the method."""

    def levels(self) -> list[int]:
        return torch.linspace(self.start or 1000, 10, (self.steps or 0) + 1).round().int().tolist()


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("multistep", 2)])
def test_order_of_convergence(method: Method, order: int) -> None:
    """From level 700 the flow of these laws is known: deviations from the mean scale with the spread."""
    start, counts = 700, [20, 40, 80, 160]
    x = crystals(40)
    denoiser, seeds = gaussian(NOISE, torch.tensor(0.3)), torch.arange(40)
    first = next(iter(ProbabilityFlow(NOISE, start=start).trajectory(denoiser, x, seeds)))
    bar = NOISE.lattice.alpha_bar  # type: ignore[attr-defined]
    spread = (bar[10] * WIDTH**2 + 1 - bar[10]).sqrt() / (bar[start] * WIDTH**2 + 1 - bar[start]).sqrt()
    mean = CELL * torch.eye(3, dtype=torch.float64)
    truth = bar[10].sqrt() * mean + spread * (first.lattice - bar[start].sqrt() * mean)
    errors = []
    for steps in counts:
        end = UpTo(NOISE, steps, method, start).sample(denoiser, x, seeds)
        errors.append(float((end.lattice - truth).abs().mean()))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("method", METHODS)
def test_a_delta_is_reached_in_ten_steps(method: Method) -> None:
    data = rand_crystals(0, 4)

    def oracle(x: CrystalBatch, t: Tensor) -> Tangent:
        sigma = NOISE.frac.sigmas[t][x.index][:, None].to(x.dtype)
        score = wrapped_score(x.frac - data.frac, sigma.expand_as(x.frac))
        norms = NOISE.frac.norms[t][x.index][:, None].sqrt().to(x.dtype)  # type: ignore[attr-defined]
        bar = NOISE.lattice.alpha_bar[t][:, None, None].to(x.dtype)  # type: ignore[attr-defined]
        eps = (x.lattice - bar.sqrt() * data.lattice) / (1 - bar).sqrt()
        return Tangent(lattice=eps, frac=score / norms)

    x = ProbabilityFlow(NOISE, 10, method).sample(oracle, data, torch.arange(4))
    assert logmap(x.frac - data.frac).abs().max() < 1e-2
    torch.testing.assert_close(x.lattice, data.lattice, atol=1e-6, rtol=1e-6)


def test_a_start_near_the_data_stays_near_it() -> None:
    """Noised to level t, a crystal is off by sigma_t and the deterministic flow leaves it there or nearer."""
    data = crystals(200)

    def know_nothing(x: CrystalBatch, t: Tensor) -> Tangent:
        return Tangent(lattice=torch.zeros_like(x.lattice), frac=torch.zeros_like(x.frac))

    for start in (100, 400):
        path = list(ProbabilityFlow(NOISE, 5, start=start).trajectory(know_nothing, data, torch.arange(200)))
        spread = logmap(path[-1].frac - data.frac).std().item()
        assert spread == pytest.approx(float(NOISE.frac.sigmas[start]), rel=0.05)
        assert len(path) == 6 and path[0].lattice.shape == data.lattice.shape


def test_a_sample_depends_on_its_seed_alone(tiny_model: Callable[..., CrystalModel]) -> None:
    model, x, seeds = tiny_model(dtype=torch.float64), rand_crystals(1, 4), torch.tensor([5, 6, 7, 8])
    for sampler in (ProbabilityFlow(NOISE, 4), ProbabilityFlow(NOISE, 4, "multistep", start=300)):
        together = sampler.sample(model.denoise, x, seeds)
        alone = sampler.sample(model.denoise, x[2], seeds[2:3])
        assert_close_crystals(together[2], alone, atol=1e-6)


def test_guidance_bends_the_flow_and_zero_does_not(tiny_model: Callable[..., CrystalModel]) -> None:
    model, x, seeds = tiny_model(), rand_crystals(2, 3, dtype=torch.float32), torch.arange(3)
    flow = ProbabilityFlow(NOISE, 5)
    plain, zero, strong = (
        flow.sample(model.denoise, x, seeds, EnergyGuidance(model, scale) if scale is not None else None)
        for scale in (None, 0.0, 5.0)
    )
    assert torch.equal(plain.frac, zero.frac) and torch.equal(plain.lattice, zero.lattice)
    assert not torch.equal(plain.frac, strong.frac) and not torch.equal(plain.lattice, strong.lattice)


@pytest.mark.parametrize("method", METHODS)
def test_evaluations_are_counted(method: Method) -> None:
    calls: list[int] = []

    def count(x: CrystalBatch, t: Tensor) -> Tangent:
        calls.append(int(t))
        return Tangent(lattice=torch.zeros_like(x.lattice), frac=torch.zeros_like(x.frac))

    flow = ProbabilityFlow(NOISE, 7, method)
    frames = list(flow.trajectory(count, crystals(1), torch.tensor([0])))
    assert len(calls) == flow.evaluations and min(calls) >= 1 and max(calls) == 1000
    assert len(frames) == len(flow.levels())


def test_other_processes_and_impossible_counts_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="ancestral"):
        ProbabilityFlow(CrystalNoise.gemsdiff())
    for settings in ({"steps": 0}, {"start": 1001}):
        with pytest.raises(InputError, match=r"\b(0|1001)\b"):
            ProbabilityFlow(NOISE, **settings)
