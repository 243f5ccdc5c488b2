import pytest

from crystalml import recipes
from crystalml.errors import InputError
from crystalml.models.crysformer import CrysformerConfig
from crystalml.models.cspnet import CSPNetConfig
from crystalml.objectives.energy import IntermediateEnergy


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


def test_dao_p_learns_energies_in_the_models_own_units() -> None:
    recipe = recipes.dao_p_diffusion("tiny", form="poisson", clean=0.3)
    assert isinstance(recipe.objective, IntermediateEnergy)
    assert recipe.objective.scale == recipe.model.energy
    assert (recipe.objective.form, recipe.objective.clean) == ("poisson", 0.3)


def test_unknown_size_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="small"):
        recipes.dao_g("huge")  # type: ignore[arg-type]
