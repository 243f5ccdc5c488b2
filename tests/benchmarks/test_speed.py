"""The speed benchmark times the same work for all, and says so."""

import json
from pathlib import Path

import pytest
import torch

from crystalml.benchmarks import speed
from crystalml.errors import InputError
from crystalml.noise.product import CrystalNoise


def test_every_network_is_timed_on_every_task(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    result = speed.run(
        dim=8, depth=1, frequencies=2, crystals=3, steps=1, repeats=2, device="cpu", out=out, max_pairs=800
    )
    assert json.loads(out.read_text()) == result
    rows = [row for row in result["rows"] if "bfloat16" not in row["network"]]
    tasks = ["sampling", "energy", "energy, forces, stress"]
    names = [speed.REFERENCE, "CSPNet", "Crysformer"]
    assert [(row["task"], row["network"]) for row in rows] == [(t, n) for t in tasks for n in names]
    for row in result["rows"]:
        assert len(row["seconds"]) == 2
        assert row["structures_per_second"] >= row["structures_per_second_median"] > 0
    references = [row["times_reference"] for row in rows if row["network"] == speed.REFERENCE]
    assert references == [1.0, 1.0, 1.0]


def test_reference_and_dense_network_draw_the_same_crystals() -> None:
    """What is timed against each other is one function: samples agree after whole steps."""
    networks = {network.name: network for network in speed.build(16, 2, 4, torch.device("cpu"))}
    batch = speed.random_crystals(4, seed=0)
    noise = CrystalNoise.diffcsp()
    draws = [
        speed._sampling(networks[name], batch, noise, 3, 0, None)() for name in (speed.REFERENCE, "CSPNet")
    ]
    for one, other in zip(*draws, strict=True):  # type: ignore[call-overload]
        torch.testing.assert_close(one.lattice, other.lattice, rtol=1e-3, atol=1e-3)


def test_crystals_of_a_file(salts: Path) -> None:
    batch = speed.crystals_of(salts, 3, seed=0)
    assert len(batch) == 3
    with pytest.raises(InputError, match="at least 1"):
        speed.run(crystals=0)
