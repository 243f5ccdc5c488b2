"""The speed comparison: each contestant computes the same, in a process that ends with the benchmark."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from crystalml.benchmarks import potential_speed
from crystalml.benchmarks.potential_speed import Process, disturbed, run, salt
from crystalml.errors import InputError
from crystalml.models.heads import EnergyScale
from crystalml.models.model import ModelConfig
from crystalml.models.periodic import PeriodicConfig
from crystalml.training.checkpoint import save_model


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ModelConfig(PeriodicConfig(16, 1, 2, 4, 8, 8, 6, 5.0), noise=False, energy=EnergyScale())
        model = config.build()
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.1 * torch.randn_like(weight)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(model, path, {"name": "tiny"})
    return path


@pytest.mark.slow
def test_all_figures_are_there(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    result = run(
        str(weights), matgl=False, compiled=False, repeats=2, relaxations=3, scaling=(96, 216), max_steps=5,
        out=out, device="cpu", progress=False,
    )  # fmt: skip
    assert json.loads(out.read_text())["relax"] == result["relax"]
    for part in (row["crystalml"] for kind in ("single", "scaling") for row in result[kind].values()):
        assert 0 < part["seconds"] <= part["seconds_median"]
    assert set(result["single"]) == {2, 32, 256} and set(result["scaling"]) == {96, 216}
    assert 0 < result["relax"]["crystalml"]["steps"] <= 15
    text = capsys.readouterr().out
    assert "Cost per atom" in text and "milliseconds" in text


@pytest.mark.slow
def test_a_contestant_that_cannot_run_says_why(weights: Path) -> None:
    with pytest.raises(InputError, match="no/python"):
        Process("chgnet", "/no/python", "", "cpu", 1)
    with (
        pytest.raises(InputError, match="no weights"),
        Process("crystalml", sys.executable, "/no.safetensors", "cpu", 1),
    ):
        pass
    with pytest.raises(InputError, match="scaling among"):
        run(str(weights), scaling=(7,))


def test_the_process_is_gone_afterwards() -> None:
    team = Process("crystalml", sys.executable, "dao-p", "cpu", 1)
    team.__exit__()
    assert team.process.poll() is not None


def test_sizes_and_disturbances() -> None:
    assert all(len(salt(n)) == n for n in potential_speed._EDGES)
    one, again, other = (disturbed(20, None, seed) for seed in (0, 0, 1))
    assert len({atoms.get_chemical_formula() for atoms in one}) >= 15
    np.testing.assert_array_equal(one[3].positions, again[3].positions)
    assert np.abs(one[3].positions - other[3].positions).max() > 0.01
    volumes = [atoms.get_volume() / len(atoms) for atoms in one]
    assert min(volumes) > 3 and max(volumes) < 60
