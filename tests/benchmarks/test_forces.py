from pathlib import Path

import numpy as np
import pytest

from crystalml.benchmarks.forces import _touching, run
from crystalml.datasets.arrays import Arrays
from crystalml.models.heads import EnergyScale
from crystalml.models.model import ModelConfig
from crystalml.models.periodic import PeriodicConfig


def test_errors_of_an_untrained_potential_are_those_of_the_labels(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    encoder = PeriodicConfig(16, 1, 2, 4, 8, 8, 6, cutoff=5.0)
    model = ModelConfig(encoder, noise=False, energy=EnergyScale()).build()
    result = run(shared_data, model, n=20, out=tmp_path / "f.json", progress=False)
    assert result["crystals"] == 20 and (tmp_path / "f.json").exists()
    assert 0.01 < result["forces_mae"] < 5 and 0.1 < result["stress_mae_gpa"] < 50
    assert 0.05 < result["energy_mae"] < 10
    parts = result["kinds"].values()
    assert sum(part["crystals"] for part in parts) == 20
    mean = sum(part["energy_mae"] * part["crystals"] for part in parts) / 20
    assert mean == pytest.approx(result["energy_mae"])


def test_dft_frames_are_compared_but_for_constants(shared_data: Path) -> None:
    pytest.importorskip("pyarrow")
    model = ModelConfig(
        PeriodicConfig(16, 1, 2, 4, 8, 8, 6, cutoff=5.0), noise=False, energy=EnergyScale()
    ).build()
    result = run(shared_data, model, split="dft", n=40, progress=False)
    assert result["stress_mae_gpa"] is None and 0.01 < result["forces_mae"] < 5
    assert 0 < result["energy_mae"] < 1  # totals are 2 to 12 eV/atom


def test_contacts_are_found_through_the_walls_of_the_cell() -> None:
    cells = np.array([[[4.0, 0, 0], [0, 4, 0], [0, 0, z]] for z in (4.0, 1.1, 1.3)], np.float32)
    numbers, frac = np.full(4, 8, np.int8), np.zeros((4, 3), np.float32)  # oxygen: 2 x 0.66 A
    frac[1] = (0, 0, 0.9)  # 0.4 A through the wall, in the first cell
    data = Arrays(numbers, frac, cells, np.array([2, 1, 1]), ids=["a", "b", "c"])
    assert _touching(data).tolist() == [True, False, False]
    data.lattice[1, 2, 2] = 0.6
    assert _touching(data).tolist() == [True, True, False]
