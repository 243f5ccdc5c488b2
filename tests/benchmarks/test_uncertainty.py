"""The coverage benchmark measures on families it did not fit on, and counts right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from crystalml.benchmarks import uncertainty
from crystalml.benchmarks.uncertainty import run
from crystalml.calibrate import calibrate
from crystalml.datasets.packed import PackedDataset
from crystalml.errors import InputError, UnsupportedError
from crystalml.models.heads import EnergyScale
from crystalml.models.model import CrystalModel, ModelConfig
from crystalml.models.periodic import PeriodicConfig
from crystalml.predict import Predictor
from crystalml.testing import rand_crystals


@pytest.fixture(scope="module")
def model() -> CrystalModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ModelConfig(PeriodicConfig(16, 1, 2, 4, 8, 8, 6, 5.0), noise=False, energy=EnergyScale())
        model = config.build().eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.2 * torch.randn_like(weight)
    return model


@pytest.fixture(scope="module")
def data(model: CrystalModel) -> PackedDataset:
    """600 crystals, in families of three, that the model gets wrong by a normal 0.1 eV/atom."""
    x = rand_crystals(0, count=600, max_atoms=3)
    packed = PackedDataset.from_arrays(*(v.numpy() for v in (x.numbers, x.frac, x.lattice, x.num_atoms)))
    true = Predictor(model)(packed[:], forces=False)["energy_per_atom"]
    energy = true + 0.1 * torch.randn(600, generator=torch.Generator().manual_seed(0))
    labels = {"energy": energy, "parent": torch.arange(600) // 3, "off_equilibrium": torch.arange(600) % 2}
    return replace(packed, labels={name: value.float() for name, value in labels.items()})


def test_coverage_on_the_other_half(model: CrystalModel, data: PackedDataset, tmp_path: Path) -> None:
    data.save(tmp_path / "val.safetensors")
    result = run(model, val=tmp_path / "val.safetensors", out=tmp_path / "u.json", progress=False)
    assert (tmp_path / "u.json").exists() and result["fitted_on"] == 300
    groups = result["groups"]
    assert groups["all"]["crystals"] == 300 == groups["crystals"]["crystals"] + groups["frames"]["crystals"]
    for part, level in zip(groups["all"]["coverage"], (0.68, 0.9, 0.95), strict=True):
        assert part["share"] == pytest.approx(level, abs=0.09)  # 2.5 times sqrt(0.2 (1 / 300 + 1 / 300))
        assert part["interval"][0] <= part["share"] <= part["interval"][1]
    assert groups["all"]["width_68"] == pytest.approx(0.1, rel=0.25)
    assert groups["all"]["mae"] == pytest.approx(0.08, rel=0.2)


def test_families_are_never_cut(data: PackedDataset) -> None:
    family = uncertainty._families(data)
    half = uncertainty._half(family, seed=1)
    assert len(half) == 100 and np.isin(family, half).sum() == 300
    assert (half != uncertainty._half(family, seed=2)).any()


def test_the_models_own_bars_on_a_test_file(model: CrystalModel, data: PackedDataset, salts: Path) -> None:
    result = run(calibrate(model, data), test=salts, progress=False)
    assert result["groups"]["all"]["crystals"] == 4 and result["mean_width_90_constant"] is None
    with pytest.raises(UnsupportedError, match="crystalml calibrate"):
        run(model, test=salts, progress=False)
    with pytest.raises(InputError, match="one of val"):
        run(model, progress=False)
