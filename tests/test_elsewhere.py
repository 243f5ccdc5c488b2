"""Everything computes where it is told to, with the same result, and mixes no devices on the way.

The other device is a pretended one (`elsewhere`), which needs no GPU, and CUDA where there is one.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from pymatgen.core import Lattice, Structure

from crystalml import DaoCalculator, PropertyPredictor, StructureGenerator, recipes, relax
from crystalml.convert import to_structures
from crystalml.datasets.packed import PackedDataset
from crystalml.embed import embed
from crystalml.predict import Predictor
from crystalml.prototypes import PrototypeAtlas
from crystalml.testing import rand_crystals
from crystalml.train import RECIPES, TrainConfig, train
from crystalml.training.checkpoint import load_model_file
from crystalml.training.fit import FitConfig

_spec = importlib.util.spec_from_file_location("elsewhere", Path(__file__).with_name("elsewhere.py"))
pretended = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pretended)


@pytest.fixture
def pretence():
    with pretended.elsewhere() as device:
        yield device


@pytest.fixture(params=["pretended", "cuda"])
def there(request):
    if request.param == "pretended":
        yield request.getfixturevalue("pretence")
    elif torch.cuda.is_available():
        yield torch.device("cuda")
    else:
        pytest.skip("no GPU")


def test_the_pretence_notices_what_cuda_would(pretence):
    there = pretence
    x = torch.ones(3, device=there)
    assert x.device == there and (x + 1).tolist() == [2, 2, 2] and (x * torch.tensor(2.0)).sum().item() == 6
    with pytest.raises(AssertionError, match="mixes devices"):
        x + torch.ones(3)
    with pytest.raises(AssertionError, match="mixes devices"):
        torch.arange(3)[x.long()]
    with pytest.raises(AssertionError, match="generator"):
        torch.randn(3, device=there, generator=torch.Generator())
    assert x[torch.tensor([0, 1])].device == there and x.cpu().device.type == "cpu"


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_there(recipe, tmp_path, there):
    x = rand_crystals(0, 10, max_atoms=4, dtype=torch.float32)
    arrays = (v.numpy() for v in (x.numbers, x.frac, x.lattice, x.num_atoms))
    data = PackedDataset.from_arrays(*arrays, {"energy": torch.linspace(-3, 0, 10).numpy()})
    for device in ("cpu", there):
        out = tmp_path / str(device)
        fit = FitConfig(steps=2)
        config = TrainConfig(
            recipe, out, "tiny", fit, pairs=60, validations=2, compile=False, device=str(device)
        )
        losses = [log.losses["loss"] for log in train(config, data, data)]
        assert len(losses) == 2 and np.isfinite(losses).all()
        assert load_model_file(out / "model.safetensors", "cpu").card["recipe"] == recipe


@pytest.mark.parametrize("kind", ["potential", "crysformer"])
def test_energies_forces_and_stresses(kind, tiny_model, tiny_potential, there):
    x = rand_crystals(1, 5, dtype=torch.float32)
    model = tiny_potential() if kind == "potential" else tiny_model()
    expected = Predictor(model)(x)
    found = Predictor(model.to(there))(x)
    assert {value.device for value in found.values()} == {there} and set(found) == set(expected)
    for name, value in expected.items():
        assert np.allclose(found[name].cpu().numpy(), value.numpy(), atol=1e-4), name


def test_calculator_and_relaxation(tiny_potential, there):
    calculator = DaoCalculator(tiny_potential(), device=str(there))
    for atoms in (bulk("NaCl", "rocksalt", 5.6), molecule("H2O")):
        atoms.calc = calculator
        here = atoms.copy()
        here.calc = DaoCalculator(tiny_potential(), device="cpu")
        assert np.allclose(atoms.get_forces(), here.get_forces(), atol=1e-4)
    (found,) = relax([bulk("NaCl", "rocksalt", 5.6)], tiny_potential().to(there), max_steps=3)
    assert np.isfinite(found["energy"])


@pytest.mark.parametrize("name", ["dao_g", "diffcsp", "gemsdiff"])
@pytest.mark.parametrize("solver", ["pc", "heun"])
def test_structures_are_sampled_there(name, solver, there):
    recipe = getattr(recipes, name)("tiny")
    if solver == "heun" and name != "dao_g":
        pytest.skip("one network is enough for a second solver")
    torch.manual_seed(0)
    model = recipe.model.build()
    generator = StructureGenerator(model, device=str(there), solver=solver, max_redraws=0, potential=None)
    generator.sample("NaCl", 2, strategy="diffusion", formula_units=1, steps=4, progress=False)
    assert generator.report.requested == 2


def test_guided_and_known_structures(tiny_model, tiny_potential, there):
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    generator = StructureGenerator(
        tiny_model(), tiny_model(), device=str(there), potential=tiny_potential(),
        atlas=PrototypeAtlas.from_structures([salt]), max_redraws=0,
    )  # fmt: skip
    quiet = {"seed": 0, "progress": False}
    generator.sample("KBr", 1, strategy="diffusion", formula_units=1, steps=3, guidance=1.0, **quiet)
    (found,) = generator.sample("KBr", 1, strategy="hybrid", noise_level=0.2, **quiet)
    assert found.composition.reduced_formula == "KBr" and np.isfinite(found.properties["energy_per_atom"])


def test_forces_are_learned_and_error_bars_fitted(tiny_potential, there):
    x = rand_crystals(3, 40, dtype=torch.float32)
    labels = {"energy": torch.linspace(-3, 0, 40), "stress": torch.zeros(40, 3, 3)}
    x = x.replace(labels=labels, site_labels={"forces": torch.randn(len(x.numbers), 3)})
    objective, model = recipes.dao_p("tiny").objective, tiny_potential()
    expected = objective(model, x, generator=torch.Generator().manual_seed(0))["forces"].item()
    found = objective(model.to(there), x.to(there), generator=torch.Generator(device=there).manual_seed(0))
    found["loss"].backward()
    assert found["forces"].item() == pytest.approx(expected, rel=1e-3)
    assert all(p.grad.device == there for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("method", ["regression", "diffusion", "ridge", "gp"])
def test_properties(method, there):
    torch.manual_seed(0)
    encoder = recipes.fourierframenet("tiny").model.build().eval()
    structures = to_structures(rand_crystals(4, 30))
    values = np.array([s.volume / len(s) for s in structures])
    settings = {"epochs": 1} if method in ("regression", "diffusion") else {}
    predictor = PropertyPredictor(encoder, method, device=str(there), progress=False, **settings)
    predictor.fit(structures, values)
    assert np.isfinite(predictor.predict(structures[:3])).all()


@pytest.mark.parametrize("name", ["fourierframenet", "dao_g", "dao_p", "gemsdiff"])
def test_features(name, there):
    x = rand_crystals(2, 4, dtype=torch.float32)
    torch.manual_seed(0)
    model = getattr(recipes, name)("tiny").model.build().eval()
    expected = embed(model, x)
    found = embed(model.to(there), x)
    for a, b in ((found.graph, expected.graph), (found.node, expected.node)):
        assert a.device == there and np.allclose(a.cpu().numpy(), b.numpy(), atol=1e-4)
