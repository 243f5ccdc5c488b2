import csv
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ase import Atoms

from crystalml.calculators import DaoCalculator
from crystalml.datasets.packed import PackedDataset
from crystalml.elements import symbol
from crystalml.errors import InputError, UnknownElementError
from crystalml.models.heads import EnergyScale
from crystalml.models.model import CrystalModel
from crystalml.objectives.potential import Potential
from crystalml.testing import rand_crystals
from crystalml.train import RECIPES, TrainConfig, train
from crystalml.training.checkpoint import load_model_file, read_tensors
from crystalml.training.fit import FitConfig

NAN = float("nan")


def _data(seed: int, count: int) -> PackedDataset:
    x = rand_crystals(seed, count, max_atoms=4, dtype=torch.float32)
    arrays = (v.numpy() for v in (x.numbers, x.frac, x.lattice, x.num_atoms))
    return PackedDataset.from_arrays(*arrays, {"energy": torch.linspace(-3, 0, count).numpy()})


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_logs_and_resumes(recipe: str, tmp_path: Path) -> None:
    config = TrainConfig(recipe, tmp_path, "tiny", FitConfig(steps=6), pairs=60, validations=3, compile=False)
    logs = list(train(config, _data(0, 12), _data(1, 5)))
    assert len(logs) == 6 and "loss" in logs[-1].validation
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert len(rows) == sum(log.milestone for log in logs) == 3 and float(rows[-1]["val_loss"]) > 0
    model = load_model_file(tmp_path / "model.safetensors")
    assert model.card["recipe"] == recipe and model.card["training"]["train_crystals"] == 12
    with pytest.warns(UserWarning, match="had ended, nothing was trained"):
        assert list(train(config, _data(0, 12), _data(1, 5))) == []


def test_a_trained_model_knows_what_it_has_seen(tmp_path: Path) -> None:
    data = _data(0, 6)
    salts = data.select(torch.arange(2)).up_to(None)
    salts = replace(
        salts, numbers=torch.where(torch.arange(len(salts.numbers)) % 2 == 0, 11, 17).to(data.numbers)
    )
    list(train(TrainConfig("dao-p", tmp_path / "a", "tiny", FitConfig(steps=1), compile=False), salts))
    weights = tmp_path / "a" / "model.safetensors"
    assert load_model_file(weights).card["elements"] == ["Na", "Cl"]
    with pytest.raises(UnknownElementError, match="Po"):
        Atoms("Po", cell=[3, 3, 3], pbc=True).calc = DaoCalculator(weights)
    wider = TrainConfig("dao-p", tmp_path / "b", "tiny", FitConfig(steps=1), init=weights, compile=False)
    list(train(wider, data))
    card = load_model_file(tmp_path / "b" / "model.safetensors").card
    assert {"Na", "Cl"} | {symbol(z) for z in data.numbers.tolist()} == set(card["elements"])
    assert card["max_atoms"] == int(data.num_atoms.max()) and card["formula_units"]


def test_a_run_that_was_stopped_has_every_step_once_in_its_log(tmp_path: Path) -> None:
    config = TrainConfig(
        "dao-p", tmp_path, "tiny", FitConfig(steps=6), pairs=60, validations=3, compile=False
    )
    for log in train(config, _data(0, 12)):
        if log.run.progress.step == 5:
            break
    list(train(config, _data(0, 12)))
    steps = [int(row["step"]) for row in csv.DictReader((tmp_path / "log.csv").open())]
    assert steps == sorted(set(steps)) and steps[-1] == 6


def _tuned(recipe: str, tmp_path: Path, lr: float = 1e-3) -> tuple[CrystalModel, CrystalModel]:
    """A tiny model after two steps at this rate, and what a run of size small at rate 0 makes of it."""
    first = TrainConfig(recipe, tmp_path / "a", "tiny", FitConfig(steps=2, lr=lr), compile=False)
    list(train(first, _data(0, 6)))
    weights, fit = tmp_path / "a" / "model.safetensors", FitConfig(steps=1, lr=0.0)
    list(train(TrainConfig(recipe, tmp_path / "b", "small", fit, init=weights, compile=False), _data(0, 6)))
    return load_model_file(weights), load_model_file(tmp_path / "b" / "model.safetensors")


def test_fine_tuning_starts_from_given_weights(tmp_path: Path) -> None:
    a, b = _tuned("dao-g", tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_shallow_gemsnet_is_deepened_and_says_the_same_at_first(tmp_path: Path) -> None:
    a, b = _tuned("gemsdiff", tmp_path, lr=1e-2)
    assert a.config.encoder.depth < b.config.encoder.depth  # type: ignore[union-attr]
    x, t = _data(2, 5)[torch.arange(5)], torch.tensor([5, 20, 40, 60, 99])
    torch.testing.assert_close(a.denoise(x, t).frac, b.denoise(x, t).frac)
    new = [p for name, p in b.named_parameters() if name.startswith("encoder.blocks.1.")]
    out = b.denoise(x, t)
    slopes = torch.autograd.grad(out.frac.square().sum() + out.lattice.square().sum(), new, allow_unused=True)  # type: ignore[union-attr]
    assert any(s is not None and s.abs().max() > 0 for s in slopes)  # and what adds nothing yet can learn to


def test_a_small_potential_is_grown_and_says_the_same_at_first(tmp_path: Path) -> None:
    recipe = RECIPES["dao-p"]("tiny")
    list(
        train(
            TrainConfig(recipe, tmp_path / "a", fit=FitConfig(steps=2, lr=1e-2), compile=False), _data(0, 6)
        )
    )
    encoder = replace(recipe.model.encoder, hidden=5, order=3, depth=2)  # type: ignore[type-var]
    wide = replace(recipe, model=replace(recipe.model, encoder=encoder))
    weights, fit = tmp_path / "a" / "model.safetensors", FitConfig(steps=1, lr=0.0)
    list(train(TrainConfig(wide, tmp_path / "b", fit=fit, init=weights, compile=False), _data(0, 6)))
    a, b = load_model_file(weights), load_model_file(tmp_path / "b" / "model.safetensors")
    assert a.config.encoder == recipe.model.encoder and b.config.encoder == encoder
    x = _data(2, 5)[torch.arange(5)]
    torch.testing.assert_close(a.energy(x), b.energy(x))
    last = b.encoder.blocks[0].ffn[2].weight  # type: ignore[index, union-attr]
    (slope,) = torch.autograd.grad(b.energy(x).sum(), last)
    assert slope[:, -16:].abs().max() > 0  # what adds nothing yet can learn to


def test_weights_of_another_noise_are_refused(tmp_path: Path) -> None:
    config = TrainConfig("dao-g", tmp_path, "tiny", FitConfig(steps=1), init="gemsdiff")  # a shipped name
    with pytest.raises(InputError, match=r"'gemsdiff'.*'diffcsp'"):
        next(train(config, _data(0, 6)))


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dao-g"):
        next(train(TrainConfig("gpt", tmp_path), _data(0, 3)))
    with pytest.raises(InputError, match=r"bf16.*dao-p"):
        next(train(TrainConfig("dao-g", tmp_path, "tiny", bf16=True), _data(0, 3)))
    with pytest.raises(InputError, match="at most 0 atoms"):
        next(train(TrainConfig("dao-g", tmp_path, "tiny", max_atoms=0), _data(0, 3)))
    with pytest.raises(InputError, match=r"moduli.*dao-p.*dao-g"):
        next(train(TrainConfig("dao-g", tmp_path, "tiny", moduli=_data(0, 3)), _data(0, 3)))
    with pytest.raises(InputError, match=r"bulk_modulus.*pack-moduli"):
        next(train(TrainConfig("dao-p", tmp_path, "tiny", moduli=_data(0, 3)), _data(0, 3)))


def test_moduli_are_learned_beside_frames(tmp_path: Path) -> None:
    data = _data(0, 8)
    labels = data.labels | {"stress": torch.zeros(8, 3, 3)}
    frames = replace(data, labels=labels, site_labels={"forces": torch.zeros_like(data.frac)})
    cubic = _data(1, 4)
    moduli = replace(
        cubic,
        labels={"bulk_modulus": torch.full((4,), 90.0), "shear_modulus": torch.full((4,), 40.0)},
        site_labels={"response": torch.zeros(len(cubic.frac), 6, 3)},
    )
    config = TrainConfig("dao-p", tmp_path, "tiny", FitConfig(steps=2), moduli=moduli, compile=False)
    *_, last = train(config, frames)
    assert last.losses["moduli"] > 0
    unknown = replace(moduli, labels=moduli.labels | {"bulk_modulus": torch.full((4,), NAN)})
    with pytest.raises(InputError, match="none of the crystals given as moduli"):
        next(train(replace(config, moduli=unknown), frames))


def _partly_labelled(seed: int, count: int) -> PackedDataset:
    """Half of the crystals have forces and stresses, other ones no energy, the first nothing at all."""
    data, g = _data(seed, count), torch.Generator().manual_seed(seed)
    forces, stress = torch.randn(data.frac.shape, generator=g), torch.randn(count, 3, 3, generator=g)
    known = torch.arange(count) >= count // 2
    stress[~known], forces[~known.repeat_interleave(data.num_atoms.long())] = NAN, NAN
    energy = torch.where((torch.arange(count) % 3 == 1), data.labels["energy"], NAN)
    return replace(data, labels={"energy": energy, "stress": stress}, site_labels={"forces": forces})


def test_every_line_of_the_log_stands_under_its_names(tmp_path: Path) -> None:
    """Batches with and without forces report other losses, and a resumed run may know more than its log."""
    (tmp_path / "log.csv").write_text("step,val_loss\n1,7.5\n")
    config = TrainConfig(
        "dao-p", tmp_path, "tiny", FitConfig(steps=16), pairs=200, max_crystals=2, validations=16
    )
    data = _partly_labelled(0, 16)
    logs = [log for log in train(config, data, data) if log.milestone]
    header, *lines = csv.reader((tmp_path / "log.csv").open())
    assert all(len(line) == len(header) for line in lines) and len(lines) == len(logs) + 1
    assert header[:2] == ["step", "val_loss"] and lines[0] == ["1", "7.5", *[""] * (len(header) - 2)]
    for line, log in zip(lines[1:], logs, strict=True):
        row = dict(zip(header, line, strict=True))
        for name, value in (log.losses | {f"val_{k}": v for k, v in log.validation.items()}).items():
            assert float(row[name]) == pytest.approx(value, abs=1e-6)
        assert all((row[name] == "") == (name not in log.losses) for name in ("energy", "forces", "stress"))
    assert len({tuple(log.losses) for log in logs}) > 1


def test_validation_errors_are_means_over_what_is_labelled(tmp_path: Path) -> None:
    """As if all crystals had been in one batch, however unevenly labels fall on batches."""
    val = _partly_labelled(1, 21)
    config = TrainConfig("dao-p", tmp_path, "tiny", FitConfig(steps=1), pairs=40, compile=False)
    *_, last = train(config, _partly_labelled(0, 8), val)
    model = last.run.model.eval()
    with last.run.ema.applied(model), torch.no_grad():
        whole = Potential(EnergyScale())(model, val[slice(None)])
    for name in ("energy", "forces", "stress"):
        assert last.validation[name] == pytest.approx(float(whole[name]), rel=1e-4)


def test_crystals_without_labels_are_passed_over_and_sets_without_any_refused(tmp_path: Path) -> None:
    config = TrainConfig("dao-p", tmp_path / "a", "tiny", FitConfig(steps=16), max_crystals=1, compile=False)
    assert len(list(train(config, _partly_labelled(0, 8)))) == 16
    labelled, bare = _data(0, 4), replace(_data(0, 4), labels={"energy": torch.full((4,), NAN)})
    for sets, what in (((bare,), "training"), ((labelled, bare), "validation")):
        with pytest.raises(InputError, match=rf"no {what} crystal.*'energy', 'forces' or 'stress'.*pack"):
            next(train(replace(config, out=tmp_path / "b"), *sets))
    assert not (tmp_path / "b").exists()


WORKER = """
import os, sys, torch
from pathlib import Path
from crystalml.datasets.packed import PackedDataset
from crystalml.train import TrainConfig, distributed, train
from crystalml.training.fit import FitConfig

torch.set_num_threads(1)
data = PackedDataset.load(sys.argv[1])
with distributed("cpu") as device:
    end = FitConfig(**{sys.argv[3]: float(sys.argv[4])})
    config = TrainConfig("diffcsp", Path(sys.argv[2]), "tiny", end, pairs=40, device=device)
    *_, last = train(config, data)
    torch.save(last.run.model.state_dict(), f"{sys.argv[2]}.{os.environ['RANK']}")
"""


@pytest.mark.parametrize("end", [("steps", "4"), ("minutes", "0.02")])
def test_two_processes_train_one_model(tmp_path: Path, end: tuple[str, str]) -> None:
    """Started as torchrun starts them: both end together with the same weights; one state, counting both."""
    packed, out = tmp_path / "data.safetensors", tmp_path / "run"
    _data(0, 16).save(packed)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    base = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(packed), str(out), *end],
            env=base | {"RANK": r, "LOCAL_RANK": r},
        )
        for r in ("0", "1")
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    first, second = (torch.load(f"{out}.{rank}") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    _, meta = read_tensors(out / "state.safetensors")
    step = meta["progress"]["step"]
    assert step == 4 if end[0] == "steps" else step > 0
    assert meta["progress"]["crystals"] > step * 2
    assert load_model_file(out / "model.safetensors").card["recipe"] == "diffcsp"
