"""The study of CrysDiff: official splits kept, limits honest, figures right, and a run that goes on."""

from pathlib import Path

import numpy as np
import pytest

from crystalml.benchmarks import crysdiff
from crystalml.benchmarks.crysdiff import PROPERTIES, Labelled, Settings, load, measure, run
from crystalml.benchmarks.crysdiff_report import paired, pooled
from crystalml.errors import InputError
from crystalml.models.crysformer import CrysformerConfig
from crystalml.models.model import ModelConfig
from crystalml.testing import rand_crystals
from crystalml.training.checkpoint import save_model


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    path = tmp_path / "encoder.safetensors"
    save_model(ModelConfig(CrysformerConfig(8, 1, 2, 8, 2, 4), noise=False).build(), path, {"name": "tiny"})
    return str(path)


def few() -> Labelled:
    x, y = rand_crystals(0, 40, max_atoms=3), np.random.default_rng(0).normal(size=40)
    parts = {"train": np.arange(20), "val": np.arange(20, 30), "test": np.arange(30, 40)}
    return Labelled(x, y, parts, "eV", np.arange(40))


def test_figures_of_a_fit(encoder: str) -> None:
    settings = Settings(encoder, seen=40)
    for row in ("frozen + diffusion", "scratch + regression", "frozen + diffusion (paper)"):
        found = measure(few(), row, 50, settings, "cpu")
        assert (found["train"], found["val"], found["test"], found["unit"]) == (10, 10, 10, "eV")
        assert found["crystals"] == list(range(30, 40))
        for mine, most in zip(found["crps"], np.add(found["mae"], found["width"]), strict=True):
            assert 0 <= mine <= most
        assert set(found["coverage"]) <= {0, 1}
        rounds = 4 * (10 if "frozen" in row else 1)  # of a guess, and of the noise head around it
        assert found["epochs"] <= rounds * (2 if row == "frozen + diffusion" else 1)


def test_a_run_goes_on_where_it_was(encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[str] = []

    def counted(data: Labelled, row: str, *rest: object) -> dict[str, object]:
        fits.append(row)
        return measure(data, row, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(crysdiff, "load", lambda *_: few())
    monkeypatch.setattr(crysdiff, "measure", counted)
    rows, kept = ["frozen + diffusion", "frozen + regression"], {"timing": 0, "out": tmp_path / "r"}
    settings = Settings(encoder, seen=20)
    run("", ["jarvis-kv"], rows[:1], settings=settings, device="cpu", progress=False, **kept)  # type: ignore[arg-type]
    found = run("", ["jarvis-kv"], rows, settings=settings, device="cpu", progress=False, **kept)  # type: ignore[arg-type]
    assert fits == rows and [r["row"] for r in found["records"]] == rows
    again = {"seeds": (0, 1), "settings": settings, "device": "cpu", "progress": False, **kept}
    found = run("", ["jarvis-kv"], rows, **again)  # type: ignore[arg-type]
    assert fits == 2 * rows and [r["seeds"] for r in found["records"]] == [[0, 1], [0, 1]]
    with pytest.raises(InputError, match="seen"):
        run("", ["jarvis-kv"], rows, settings=Settings(encoder, seen=21), progress=False, **kept)  # type: ignore[arg-type]


def fit(row: str, seed: int, crystals: list[int], mae: list[float]) -> dict[str, object]:
    ones = [1.0] * len(mae)
    lengths = {"train": 5, "val": 5, "epochs": 1, "seconds": 1.0}
    figures = {"mae": mae, "crps": ones, "coverage": ones, "width": ones, "deviation": ones}
    place = {"property": "p", "fraction": 100.0, "unit": "eV", "row": row, "seed": seed, "crystals": crystals}
    return {**place, **lengths, **figures}


def test_paired_differences() -> None:
    crystals = list(range(100))
    records = [fit("a", 0, crystals, [1.0, 2.0] * 50), fit("b", 0, crystals, [2.0, 3.0] * 50)]
    (gap,) = paired(records, "a", "b", "mae")
    assert gap["mean"] == -1 and gap["interval"] == (-1, -1)
    assert paired(records, "a", "c", "mae") == []
    assert paired([*records, fit("a", 1, crystals, [9.0] * 100)], "a", "b", "mae")[0]["mean"] == -1


def test_figures_over_seeds() -> None:
    same, mae = list(range(50)), [1.0, 3.0] * 25
    (one,) = pooled([fit("a", 0, same, mae)])
    (again,) = pooled([fit("a", seed, same, mae) for seed in (0, 1, 2)])
    assert again["mae"] == one["mae"] and (again["test"], again["seeds"]) == (50, [0, 1, 2])
    (other,) = pooled([fit("a", seed, list(range(50 * seed, 50 * seed + 50)), mae) for seed in (0, 1, 2)])
    low, high = other["mae"]["interval"]
    assert (other["mae"]["mean"], other["test"]) == (2, 150)
    assert one["mae"]["interval"][0] < low < 2 < high < one["mae"]["interval"][1]


def test_a_head_learned_again(encoder: str) -> None:
    found = measure(few(), "pretrained + regression again", 100, Settings(encoder, seen=20), "cpu")
    assert found["epochs"] == 10


def test_official_splits_and_limits(shared_data: Path) -> None:
    whole = load(shared_data, "jarvis-kv", Settings())
    assert {k: len(v) for k, v in whole.parts.items()} == {"train": 1096, "val": 153, "test": 132}
    few = load(shared_data, "jarvis-kv", Settings(max_train=60, max_test=15, max_atoms=8))
    assert {k: len(v) for k, v in few.parts.items()} == {"train": 60, "val": 20, "test": 15}
    assert int(few.crystals.num_atoms.max()) <= 8 and len(few.y) == len(few.crystals) == 95


def test_superconductors_keep_their_official_split(shared_data: Path) -> None:
    data = load(shared_data, "supercon-log_tc", Settings(max_atoms=2))
    assert data.unit == "log10 K" and -3 < data.y.min() < data.y.max() < 3
    whole = load(shared_data, "supercon-log_tc", Settings())
    assert {k: len(v) for k, v in whole.parts.items()} == {"train": 615, "val": 201, "test": 201}


@pytest.mark.parametrize(
    ("name", "row", "fraction", "said"),
    [("gap", "frozen + diffusion", 100, "property 'gap'"), ("jarvis-kv", "x", 100, "row 'x'"),
     ("jarvis-kv", "frozen + diffusion", 0, "not 0")],
)  # fmt: skip
def test_what_it_does_not_know(name: str, row: str, fraction: float, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        run("", [name], [row], [fraction], out=tmp_path / "none")
    assert not (tmp_path / "none").exists() and len(PROPERTIES) == 15
