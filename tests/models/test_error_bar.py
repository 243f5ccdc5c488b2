"""The error bar as a function of features: what it may and may not depend on, and that it travels."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

from crystalml.crystal import CrystalBatch
from crystalml.errors import InputError
from crystalml.models.error_bar import ErrorBar, with_error_bar
from crystalml.models.heads import EnergyScale
from crystalml.models.model import CrystalModel, ModelConfig
from crystalml.models.periodic import PeriodicConfig
from crystalml.predict import Predictor
from crystalml.testing import rand_crystals, random_rotation
from crystalml.training.checkpoint import load_model_file, save_model
from crystalml.weights import load_model, register

DIM = 16


def some_bar(seed: int = 0) -> ErrorBar:
    g = torch.Generator().manual_seed(seed)
    bar = ErrorBar(DIM)
    bar.mean.copy_(torch.randn(DIM, generator=g) / 4)
    bar.slope.copy_(torch.randn(DIM, generator=g) / 4)
    bar.whiten.copy_(torch.randn(DIM, DIM, generator=g) / 4)
    bar.offset.fill_(-3.0)
    bar.bounds.copy_(torch.tensor([-4.0, -2.0]))
    bar.factors.copy_(torch.tensor([1.0, 1.7, 2.1]))
    return bar


@pytest.fixture(scope="module")
def potential() -> CrystalModel:
    encoder = PeriodicConfig(DIM, 1, 2, 4, 8, 8, 6, cutoff=5.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ModelConfig(encoder, noise=False, energy=EnergyScale()).build().double().eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.2 * torch.randn_like(weight)
    return model


@pytest.fixture(scope="module")
def calibrated(potential: CrystalModel) -> CrystalModel:
    return with_error_bar(potential, some_bar())


def bars(model: CrystalModel, x: CrystalBatch) -> torch.Tensor:
    return Predictor(model)(x)["energy_uncertainty"]


def test_the_formula() -> None:
    bar = some_bar()
    x = torch.randn(50, DIM, generator=torch.Generator().manual_seed(1))
    z = x - bar.mean
    size = (z @ bar.slope - 3.0).clamp(-4, -2).exp()
    want = size * torch.sqrt(1 + torch.einsum("bi,ik,jk,bj->b", z, bar.whiten, bar.whiten, z))
    torch.testing.assert_close(bar(x), want)
    assert (bar(x) > 0).all() and bar.factor(0.95) == pytest.approx(2.1)
    with pytest.raises(InputError, match=r"0\.99"):
        bar.factor(0.99)


def test_far_from_the_data_it_only_grows() -> None:
    bar, direction = some_bar(), torch.randn(DIM, generator=torch.Generator().manual_seed(2))
    far = torch.stack([bar.mean + step * direction for step in (10.0, 20.0, 40.0, 1e6)])
    values = bar(far)
    assert (values[1:] > values[:-1]).all() and values.isfinite().all()


def test_invariances(calibrated: CrystalModel) -> None:
    x = rand_crystals(0)
    reference = bars(calibrated, x)
    assert (reference > 0).all() and reference.unique().numel() == len(x)
    turned = x.replace(lattice=x.lattice @ random_rotation(1, reflect=True).T)
    torch.testing.assert_close(bars(calibrated, turned), reference, rtol=1e-9, atol=0)
    moved = x.replace(frac=(x.frac + 0.3) % 1.0)
    torch.testing.assert_close(bars(calibrated, moved), reference, rtol=1e-9, atol=0)
    alone = torch.cat([bars(calibrated, one) for one in x.split()])
    torch.testing.assert_close(alone, reference, rtol=1e-9, atol=0)


def test_a_supercell_has_the_same_bar_per_atom(calibrated: CrystalModel) -> None:
    """Its atoms err alike: the bar of the cell grows with N, not with the root of N."""
    one = rand_crystals(3, count=1, max_atoms=5)
    n = int(one.num_atoms[0])
    frac = torch.cat([(one.frac + torch.tensor([i, 0.0, 0.0])) / torch.tensor([3.0, 1, 1]) for i in range(3)])
    scale = torch.diag(torch.tensor([3.0, 1, 1], dtype=torch.float64))
    triple = CrystalBatch(one.numbers.repeat(3), frac.double(), scale @ one.lattice, 3 * one.num_atoms)
    assert len(triple.numbers) == 3 * n
    torch.testing.assert_close(bars(calibrated, triple), 3 * bars(calibrated, one), rtol=1e-9, atol=0)


def test_it_changes_no_prediction_and_needs_no_forces(
    potential: CrystalModel, calibrated: CrystalModel
) -> None:
    x = rand_crystals(1)
    plain, with_bar = Predictor(potential)(x), Predictor(calibrated)(x)
    assert set(with_bar) - set(plain) == {"energy_uncertainty"}
    for name, value in plain.items():
        assert torch.equal(value, with_bar[name])
    energies = Predictor(calibrated)(x, forces=False)
    torch.testing.assert_close(energies["energy_uncertainty"], with_bar["energy_uncertainty"])
    assert "energy_uncertainty" not in Predictor(potential)(x, forces=False)


def test_save_load_and_register(calibrated: CrystalModel, tmp_path: Path) -> None:
    x = rand_crystals(2, dtype=torch.float32)
    path = tmp_path / "p.safetensors"
    save_model(calibrated, path, {"name": "p"})
    want = bars(copy.deepcopy(calibrated).float(), x)
    assert torch.equal(bars(load_model_file(path), x), want)
    shelf = tmp_path / "shelf" / "registry.json"
    shelf.parent.mkdir()
    register(path, "p", registry=shelf)
    assert torch.equal(bars(load_model("p", registry=shelf), x), want)
    bare = with_error_bar(load_model_file(path), None)
    assert bare.error_bar is None and "energy_uncertainty" not in Predictor(bare)(x)
    assert not bare.config.error_bar and not any("error_bar" in name for name in bare.state_dict())


def test_only_a_potential_can_carry_one(potential: CrystalModel, tiny_model) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="potential"):
        dataclasses.replace(tiny_model().config, error_bar=True)
    old = potential.config.to_dict()
    del old["error_bar"]  # files of before
    assert ModelConfig.from_dict(old) == potential.config
