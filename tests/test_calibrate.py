"""Calibration: what is promised in per cent is kept on crystals that were not asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from crystalml.calibrate import calibrate, fit_error_bar, residuals
from crystalml.datasets.packed import PackedDataset
from crystalml.errors import InputError, UnsupportedError
from crystalml.models.error_bar import LEVELS
from crystalml.models.heads import EnergyScale
from crystalml.models.model import CrystalModel, ModelConfig
from crystalml.models.periodic import PeriodicConfig
from crystalml.predict import Predictor
from crystalml.testing import rand_crystals


def problem(count: int, seed: int, dim: int = 8, family: str = "normal"):
    """Errors whose size is a known function of correlated features."""
    g = np.random.default_rng(seed)
    mix = np.random.default_rng(9).normal(size=(dim, dim))
    x = 0.3 + g.normal(size=(count, dim)) @ mix
    size = np.exp(-3 + 0.25 * x[:, 0] - 0.15 * x[:, 1])
    noise = g.standard_t(3, count) if family == "heavy" else g.normal(size=count)
    return x, size, size * noise


@pytest.mark.parametrize("family", ["normal", "heavy"])
def test_coverage_is_what_was_promised_whatever_the_errors_look_like(family):
    x, _, error = problem(4000, 0, family=family)
    bar = fit_error_bar(x, error)
    x, size, error = problem(20_000, 1, family=family)
    width = bar(torch.as_tensor(x, dtype=torch.float32)).numpy()
    for level in LEVELS:
        # 3 standard deviations of the calibration's own draw, sqrt(p (1 - p) / 4000)
        assert np.mean(np.abs(error) <= bar.factor(level) * width) == pytest.approx(level, abs=0.025)
    fifths = np.array_split(np.argsort(width), 5)
    covered = [np.mean(np.abs(error[part]) <= width[part]) for part in fifths]
    assert np.ptp(covered) < 0.1  # a bar of one width for all covers 0.95 and 0.3
    assert np.corrcoef(np.log(width), np.log(size))[0, 1] > 0.95


def test_features_that_tell_nothing_give_one_width():
    g = np.random.default_rng(0)
    x, error = g.normal(size=(3000, 8)), 0.05 * g.normal(size=3000)
    width = fit_error_bar(x, error)(torch.randn(1000, 8)).numpy()
    assert width.mean() == pytest.approx(0.05, rel=0.1) and width.std() < 0.3 * width.mean()


def test_what_is_far_from_the_data_gets_a_wide_bar():
    x, _, error = problem(2000, 0)
    bar = fit_error_bar(x, error)
    near = bar(torch.as_tensor(x, dtype=torch.float32))
    far = bar(torch.as_tensor(20 * x, dtype=torch.float32))
    assert (far > near).float().mean() > 0.9 and far.median() > 5 * near.median()


def test_units_and_constant_features_do_not_matter():
    x, _, error = problem(1000, 0)
    reference = fit_error_bar(x, error)(torch.as_tensor(x, dtype=torch.float32))
    stretched = np.concatenate([x * np.logspace(-2, 2, 8), np.full((1000, 1), 7.0)], 1)
    found = fit_error_bar(stretched, 1000 * error)(torch.as_tensor(stretched, dtype=torch.float32))
    torch.testing.assert_close(found / 1000, reference, rtol=0.02, atol=0)


def test_exact_predictions_are_no_crash():
    x, _, _ = problem(300, 0)
    assert fit_error_bar(x, np.zeros(300))(torch.as_tensor(x, dtype=torch.float32)).isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda x, e: (x[:50], e[:50]), "50 crystals"), (lambda x, e: (x, e * np.nan), "not finite")],
)
def test_unusable_data_are_refused(change, message):
    x, _, error = problem(400, 0)
    with pytest.raises(InputError, match=message):
        fit_error_bar(*change(x, error))


# --- models -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def potential() -> CrystalModel:
    encoder = PeriodicConfig(16, 1, 2, 4, 8, 8, 6, cutoff=5.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ModelConfig(encoder, noise=False, energy=EnergyScale()).build().eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.2 * torch.randn_like(weight)
    model.card = {"name": "p"}
    return model


@pytest.fixture(scope="module")
def crystals(potential) -> PackedDataset:
    """400 crystals labelled by the model itself, off by more in those with cesium."""
    x = rand_crystals(0, count=400, max_atoms=4)
    data = PackedDataset.from_arrays(*(part.numpy() for part in (x.numbers, x.frac, x.lattice, x.num_atoms)))
    true = Predictor(potential)(data[:], forces=False)["energy_per_atom"]
    cesium = torch.zeros(400).index_add(0, x.index, (x.numbers == 55).float()) > 0
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0)) * (0.02 + 0.3 * cesium)
    energy = true + noise
    energy[:10] = torch.nan
    return PackedDataset(
        data.numbers, data.frac, data.lattice, data.num_atoms, {"energy": energy, "cesium": cesium.float()}
    )


def test_a_model_learns_its_error_bar(potential, crystals):
    found = residuals(potential, crystals)
    assert len(found) == 390 and found.features.shape == (390, 16)
    model = calibrate(potential, crystals)
    assert potential.error_bar is None and model.card == {"name": "p"}
    out = Predictor(model)(crystals[10:], forces=False)
    per_atom = out["energy_uncertainty"] / crystals.num_atoms[10:]
    error = (out["energy_per_atom"] - crystals.labels["energy"][10:]).abs()
    assert (error <= per_atom).float().mean() == pytest.approx(
        0.68, abs=0.01
    )  # on its own data, but for ties
    cesium = crystals.labels["cesium"][10:] > 0
    assert per_atom[cesium].mean() > 2 * per_atom[~cesium].mean()


def test_mistakes_are_named(potential, crystals, tiny_model):
    with pytest.raises(InputError, match="no label 'gap'"):
        calibrate(potential, crystals, "gap")
    with pytest.raises(UnsupportedError, match="potential"):
        calibrate(tiny_model(), crystals)
    blank = replace(crystals, labels={"energy": torch.full((400,), torch.nan)})
    with pytest.raises(InputError, match="0 crystals"):
        calibrate(potential, blank)
