from dataclasses import replace
from typing import Literal

import pytest

from crystalml import recipes
from crystalml.errors import ArchitectureError, InputError
from crystalml.models.crysformer import CrysformerConfig
from crystalml.models.cspnet import CSPNetConfig
from crystalml.models.gemsnet import GemsNetConfig
from crystalml.models.model import ModelConfig
from crystalml.noise.lie import LieDDPM, PredictedCell
from crystalml.noise.product import CrystalNoise
from crystalml.noise.torus import TorusDDPM
from crystalml.objectives.energy import IntermediateEnergy
from crystalml.objectives.reconstruction import Reconstruction
from crystalml.sample.predictor_corrector import PredictorCorrector
from crystalml.sample.solvers import DENSITY


def test_paper_sizes_are_the_published_systems() -> None:
    dao = recipes.dao_g("paper")
    assert dao.model.encoder == CrysformerConfig(384, 12, 8, 384, 128, 256, "gram")
    assert not dao.noise.centered and dao.noise.num_steps == 1000
    assert recipes.diffcsp("paper").model.encoder == CSPNetConfig(512, 6, 128, 256, "gram")


def test_a_models_description_names_its_noise() -> None:
    for recipe in (
        recipes.dao_g("tiny"),
        recipes.diffcsp("tiny"),
        recipes.dao_p_diffusion("tiny"),
        recipes.dao_g("paper"),
    ):
        assert recipe.model.centered == recipe.noise.centered
    assert recipes.noise_for(recipes.dao_g("tiny").model.build()).centered


@pytest.mark.parametrize("size", ["tiny", "paper"])
@pytest.mark.parametrize("mode", ["diffuse", "predict"])
def test_gemsdiff_travels_with_its_noise(size: recipes.Size, mode: Literal["diffuse", "predict"]) -> None:
    recipe = recipes.gemsdiff(size, mode)
    assert ModelConfig.from_dict(recipe.model.to_dict()) == recipe.model
    found, expected = recipes.noise_for(recipe.model.build()), recipe.noise
    assert isinstance(expected, CrystalNoise) and repr(found) == repr(expected)
    assert isinstance(found.lattice, LieDDPM if mode == "diffuse" else PredictedCell)
    last = found.frac.sigmas[-1].item()
    assert last == pytest.approx(0.3087 if size == "paper" else 0.51, abs=2e-3)
    sampler = recipes.sampler(found)
    assert isinstance(sampler, PredictorCorrector) and not sampler.corrector
    assert sampler.evaluations == 100 and sampler.density == DENSITY


def test_paper_gemsdiff_is_table_1() -> None:
    recipe = recipes.gemsdiff("paper")
    assert recipe.model.encoder == GemsNetConfig(256, 128, 32, 3, 32, 128, 6.0)
    assert isinstance(recipe.objective, Reconstruction)
    assert (recipe.objective.lattice_loss, recipe.objective.metric) == ("params", "cart")
    assert isinstance(recipe.noise, CrystalNoise) and isinstance(recipe.noise.frac, TorusDDPM)
    assert recipe.noise.frac.posterior == "code" and recipe.noise.frac.betas[-1].item() == 2e-3
    assert isinstance(recipe.noise.lattice, LieDDPM)
    assert recipe.noise.lattice.ddpm.betas[[1, -1]].tolist() == pytest.approx([1e-5, 1e-1])


def test_weights_of_a_noise_from_the_future_are_refused() -> None:
    model = replace(recipes.gemsdiff("tiny").model, process="flow-9").build()
    with pytest.raises(ArchitectureError, match=r"flow-9.*gemsdiff"):
        recipes.noise_for(model)


def test_dao_p_learns_energies_in_the_models_own_units() -> None:
    recipe = recipes.dao_p_diffusion("tiny", form="poisson", clean=0.3)
    assert isinstance(recipe.objective, IntermediateEnergy)
    assert recipe.objective.scale == recipe.model.energy
    assert (recipe.objective.form, recipe.objective.clean) == ("poisson", 0.3)


def test_unknown_size_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="small"):
        recipes.dao_g("huge")  # type: ignore[arg-type]
