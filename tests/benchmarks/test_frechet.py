"""The distance rises with noise and falls with the number of crystals, and says of what it is made."""

import json

import numpy as np
import pandas
import pytest

from crystalml.benchmarks.frechet import run
from crystalml.errors import InputError
from crystalml.testing import rand_crystals


@pytest.fixture
def table(tmp_path):
    pytest.importorskip("pyarrow")
    parts = rand_crystals(0, 60).split()
    frame = pandas.DataFrame({
        "material_id": [f"m{k}" for k in range(len(parts))],
        "numbers": [part.numbers.numpy() for part in parts],
        "frac_coords": [part.frac.double().numpy().ravel() for part in parts],
        "lattice": [part.lattice.double().numpy().ravel() for part in parts],
    })  # fmt: skip
    frame.to_parquet(tmp_path / "set.parquet")
    return tmp_path / "set.parquet"


def shape(structures):
    """Volume and nearest distance: simple numbers that noise changes."""
    return np.array([[s.volume / len(s), s.distance_matrix.mean()] for s in structures])


def test_noise_is_seen_and_more_crystals_help(table, tmp_path) -> None:
    out = tmp_path / "out"
    result = run(
        table, shape, levels=(0, 10, 100), sizes=(4, 30, 400), seeds=(0, 1, 2, 3), out=out, progress=False
    )
    clean, some, much = (row["mean"] for row in result["by_level"])
    assert clean < some < much
    small, large = (row["mean"] for row in result["by_size"])  # 400 twice cannot be had
    assert small > large == pytest.approx(clean)  # two halves, the same ones
    assert result["embedder"] == "shape" and result["half"] == 30
    assert json.loads((out / "result.json").read_text())["by_level"] == result["by_level"]
    assert (out / "frechet.png").stat().st_size > 5000


def test_a_potential_as_embedder(table, tmp_path, tiny_potential) -> None:
    result = run(
        table,
        tiny_potential(),
        n=16,
        levels=(0, 5),
        seeds=(0,),
        sizes=(8,),
        out=tmp_path / "o",
        progress=False,
    )
    assert result["features"] == 16 and result["by_level"][0]["mean"] == result["by_size"][0]["mean"]


def test_bad_requests_are_refused(table, tmp_path) -> None:
    for settings in ({"levels": (0, 101)}, {"n": 4}):
        with pytest.raises(InputError):
            run(table, shape, out=tmp_path / "o", progress=False, **settings)
    assert not (tmp_path / "o").exists()
