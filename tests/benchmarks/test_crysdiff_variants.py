"""Encoders of CrysDiff's ablations: equal budgets, and each is what its name says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crystalml.benchmarks import crysdiff, crysdiff_variants
from crystalml.benchmarks.crysdiff import ABLATION, ROWS, Labelled, Settings, measure
from crystalml.benchmarks.crysdiff_variants import VARIANTS, moved, network, pretrain
from crystalml.crystal import CrystalBatch
from crystalml.datasets.packed import PackedDataset
from crystalml.embed import embed
from crystalml.errors import InputError
from crystalml.models.averaged import AveragedConfig
from crystalml.models.model import CrystalModel, EncoderConfig
from crystalml.testing import rand_crystals
from crystalml.training.checkpoint import load_model_file

Encoders = dict[str, CrystalModel | EncoderConfig]


def few(x: CrystalBatch) -> PackedDataset:
    return PackedDataset.from_arrays(
        x.numbers.numpy(), x.frac.numpy(), x.lattice.numpy(), x.num_atoms.numpy()
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pretraining")


@pytest.fixture(scope="module")
def encoders(folder: Path) -> Encoders:
    return pretrain(list(VARIANTS), few(rand_crystals(0, 60)), 120, "tiny", folder, progress=False)


def features(model: CrystalModel | EncoderConfig, x: CrystalBatch) -> torch.Tensor:
    assert isinstance(model, CrystalModel)
    return embed(model, x).graph


def test_all_networks_saw_equally_many_crystals(encoders: Encoders, folder: Path) -> None:
    names = [part for parts in VARIANTS.values() for part in parts]
    cards = [load_model_file(folder / name / "model.safetensors").card["training"] for name in names]
    assert [card["crystals"] for card in cards] == [120] * 4 and len({card["step"] for card in cards}) == 1
    assert encoders["untrained"] == network("joint", "tiny").model.encoder


def test_separate_networks_are_averaged(encoders: Encoders, folder: Path) -> None:
    model, x = encoders["separate"], rand_crystals(1, 4)
    assert isinstance(model, CrystalModel) and isinstance(model.config.encoder, AveragedConfig)
    parts = [
        features(load_model_file(folder / name / "model.safetensors"), x) for name in ("lattice", "frac")
    ]
    torch.testing.assert_close(features(model, x), (parts[0] + parts[1]) / 2)
    for name, other in (("lattice", "frac"), ("frac", "lattice")):  # a head without a loss stays as it began
        first = network(name, "tiny").objective
        assert first.only == name  # type: ignore[union-attr]
        losses = (folder / name / "log.csv").read_text().splitlines()[0].split(",")
        assert name in losses and other not in losses


def test_only_the_non_equivariant_encoder_sees_how_a_crystal_lies(encoders: Encoders) -> None:
    x = rand_crystals(2, 6)
    for name in ("joint", "separate", "non-equivariant"):
        h, turned = features(encoders[name], x), features(encoders[name], moved(x))
        off = float((h - turned).norm() / (h - h.mean(0)).norm())
        assert (off > 0.1) if name == "non-equivariant" else (off < 1e-3), name


def test_moved_crystals_are_the_same_crystals() -> None:
    x = rand_crystals(3, 5)
    y = moved(x)
    torch.testing.assert_close(y.lattice @ y.lattice.mT, x.lattice @ x.lattice.mT)
    assert (torch.linalg.det(y.lattice) > 0).all() and not torch.allclose(y.lattice, x.lattice)
    first = x.num_atoms.cumsum(0) - x.num_atoms
    around = [((z.frac - z.frac[first][z.index]) * 2 * torch.pi).cos() for z in (x, y)]
    torch.testing.assert_close(around[0], around[1])


def test_a_finished_pretraining_is_not_repeated(
    encoders: Encoders, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    whole = crysdiff_variants.train

    def counted(*args: object) -> object:
        for log in whole(*args):  # type: ignore[arg-type]
            steps.append(log.run.progress.step)
            yield log

    monkeypatch.setattr(crysdiff_variants, "train", counted)
    again = pretrain(["joint"], few(rand_crystals(0, 60)), 120, "tiny", folder, progress=False)
    assert steps == []
    x = rand_crystals(1, 4)
    assert torch.equal(features(again["joint"], x), features(encoders["joint"], x))


@pytest.mark.parametrize("row", ABLATION)
def test_every_row_of_the_ablation_is_measured(encoders: Encoders, row: str) -> None:
    x, y = rand_crystals(0, 30, max_atoms=3), np.random.default_rng(0).normal(size=30)
    parts = {"train": np.arange(14), "val": np.arange(14, 20), "test": np.arange(20, 30)}
    data = Labelled(x, y, parts, "eV", np.arange(30))
    found = measure(data, row, 100, Settings(seen=140), "cpu", encoders[ROWS[row].start])
    assert found["epochs"] >= 1 and np.isfinite(found["mae"]).all()
    same = np.mean(found["moved"]) == pytest.approx(np.mean(found["mae"]), rel=1e-3)
    assert same == (row != "CrysDiff w/o EGNN")


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (["--ablation"], [*ABLATION]),
        (["--ablation", "--rows", "frozen + diffusion"], ["frozen + diffusion", *ABLATION]),
    ],
)
def test_the_command(run: Any, options: list[str], rows: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(crysdiff, "run", lambda *args, **_: asked.append(args))
    command = [
        "benchmark",
        "crysdiff",
        "data",
        "--properties",
        "jarvis-kv",
        "--pretrain",
        "7",
        "--size",
        "tiny",
    ]
    assert run(*command, *options).exit_code == 0
    _, properties, chosen, _, settings = asked[0]
    assert (properties, chosen) == (["jarvis-kv"], rows)
    assert (settings.pretrain, settings.size, len(ABLATION)) == (7, "tiny", 6)


def test_an_unknown_size_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="size 'huge'"):
        crysdiff.run("", ["jarvis-kv"], ABLATION, settings=Settings(size="huge"), out=tmp_path / "none")  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()
