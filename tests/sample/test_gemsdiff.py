"""GemsDiff's Algorithm 2: the sampler of every process, with another process in it."""

from itertools import pairwise
from typing import Literal

import pytest
import torch
from torch import Tensor

from crystalml import recipes
from crystalml.crystal import CrystalBatch, Tangent
from crystalml.geometry import lie
from crystalml.geometry.lattice import gram
from crystalml.geometry.torus import logmap
from crystalml.noise.product import CrystalNoise
from crystalml.sample.predictor_corrector import PredictorCorrector, within
from crystalml.sample.solvers import solver
from crystalml.testing import assert_close_crystals, fcc, rand_crystals

HEAVY = (14, 26, 55)  # random cells of hydrogen are thinner than any bound on densities


def oracle(data: CrystalBatch):  # type: ignore[no-untyped-def]
    def denoise(x: CrystalBatch, t: Tensor) -> Tangent:
        return Tangent(lattice=lie.polar(data.lattice)[0].to(x.dtype), frac=logmap(data.frac - x.frac))

    return denoise


@pytest.mark.parametrize("posterior", ["exact", "code"])
@pytest.mark.parametrize("mode", ["diffuse", "predict"])
@pytest.mark.parametrize("steps", [None, 13])
def test_the_true_crystal_is_where_it_ends(
    posterior: Literal["exact", "code"], mode: Literal["diffuse", "predict"], steps: int | None
) -> None:
    data = rand_crystals(0, 5, species=HEAVY)
    noise = CrystalNoise.gemsdiff(50, posterior=posterior, lattice_mode=mode)
    x = recipes.sampler(noise, steps).sample(oracle(data), data, torch.arange(5))
    assert logmap(x.frac - data.frac).abs().max() < 1e-9
    torch.testing.assert_close(gram(x.lattice), gram(data.lattice), atol=1e-8, rtol=1e-8)


def test_a_sample_depends_on_its_seed_alone() -> None:
    torch.manual_seed(0)
    recipe = recipes.gemsdiff("tiny")
    model, x = recipe.model.build().double().eval(), rand_crystals(1, 4)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    assert recipe.noise is not None
    sampler = recipes.sampler(recipe.noise, 6)
    together = sampler.sample(model.denoise, x, torch.tensor([5, 6, 7, 8]))
    alone = sampler.sample(model.denoise, x[2], torch.tensor([7]))
    assert_close_crystals(together[2], alone, atol=1e-6)
    other = sampler.sample(model.denoise, x[2], torch.tensor([9]))
    assert logmap(other.frac - alone.frac).abs().max() > 1e-3


def test_solvers_take_the_published_steps_or_exact_ones() -> None:
    noise = CrystalNoise.gemsdiff(50)
    published, exact = solver("pc", noise), solver("ancestral", noise)
    assert published.noise == noise and published.evaluations == exact.evaluations == 50
    assert exact.noise.frac.posterior == "exact" and exact.noise.lattice == noise.lattice  # type: ignore[union-attr]


def test_density_of_copper() -> None:
    """8.94 g/cm^3 with a = 3.615 Angstrom."""
    x = fcc()
    assert within((8.9, 9.0), x).tolist() == [True]
    assert within((9.0, 20.0), x).tolist() == within((0.1, 8.9), x).tolist() == [False]
    assert within((0.1, 100.0), x.replace(lattice=x.lattice * float("nan"))).tolist() == [False]


def test_a_cell_too_dense_or_too_thin_is_not_taken() -> None:
    noise, data = CrystalNoise.gemsdiff(4), fcc().replace(numbers=torch.tensor([92]))

    def wild(x: CrystalBatch, t: Tensor) -> Tangent:
        return Tangent(
            lattice=torch.full((1, 3, 3), -9.0).double().tril().triu(), frac=torch.zeros_like(x.frac)
        )

    free = PredictorCorrector(noise, corrector=False)
    guarded = PredictorCorrector(noise, corrector=False, density=(0.1, 100.0))
    path = [x.lattice for x in guarded.trajectory(wild, data, torch.tensor([3]))]
    assert not within((0.1, 100.0), free.sample(wild, data, torch.tensor([3])))[0]
    assert all(within((0.1, 100.0), data.replace(lattice=cell))[0] for cell in path)
    assert any(torch.equal(a, b) for a, b in pairwise(path))


def test_guidance_works_through_the_lie_algebra() -> None:
    """An energy that grows with the volume yields smaller cells, and none of it is lost on the way."""
    noise, x = CrystalNoise.gemsdiff(50), rand_crystals(2, 60, max_atoms=2, species=HEAVY)

    def broad(y: CrystalBatch, t: Tensor) -> Tangent:
        return Tangent(lattice=lie.polar(y.lattice)[0], frac=torch.zeros_like(y.frac))

    def guide(y: CrystalBatch, t: Tensor) -> Tangent:  # E = 3 ln V, dE/dL = 3 L^-T
        return Tangent(lattice=3 * torch.linalg.inv(y.lattice).mT)

    sampler = recipes.sampler(noise)
    free, pulled = (sampler.sample(broad, x, torch.arange(60), g) for g in (None, guide))
    assert (pulled.volume < free.volume).all()
