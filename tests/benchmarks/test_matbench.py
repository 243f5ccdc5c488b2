"""The MatBench benchmark: splits, rows, and a run that goes on where it stopped."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.model_selection import KFold

from crystalml.benchmarks import matbench
from crystalml.benchmarks.matbench import ENCODERS, Settings, _fingerprints, run
from crystalml.benchmarks.matbench_tasks import FOLD_SEED, TASKS, Task, load_task, split
from crystalml.crystal import CrystalBatch
from crystalml.datasets.arrays import pack
from crystalml.errors import InputError
from crystalml.models.fourierframenet import FourierFrameNetConfig
from crystalml.models.model import ModelConfig
from crystalml.property import PropertyPredictor
from crystalml.testing import rand_crystals
from crystalml.training.checkpoint import save_model
from crystalml.weights.registry import fingerprint, load_model

COUNT = 60


def two_atoms(first: int, second: int, a: float, place: float = 0.25) -> CrystalBatch:
    """Face-centred cubic with an atom at `place` of the diagonal: 0.25 zinc blende, 0.5 rock salt."""
    frac, cell = torch.tensor([[0.0] * 3, [place] * 3]), a / 2 * (torch.ones(3, 3) - torch.eye(3))
    return CrystalBatch(torch.tensor([first, second]), frac, cell[None], torch.tensor([2]))


DIAMOND, ROCK_SALT, LEAD = two_atoms(6, 6, 3.57), two_atoms(11, 17, 5.64, 0.5), two_atoms(82, 82, 6.5)
SOFT_AND_HARD = {  # of every ready model a low and a high value
    "log-k": (ROCK_SALT, DIAMOND),  # 24 and 440 GPa
    "log-g": (ROCK_SALT, DIAMOND),  # 15 and 530 GPa
    "band-gap": (LEAD, ROCK_SALT),  # a metal, 5 eV in PBE
    "formation-energy": (ROCK_SALT, LEAD),  # -2.1 and, in this structure, above 0 eV/atom
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of the real data, with the phonon task of 60 made-up crystals in it."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "properties").mkdir()
    x = rand_crystals(0, COUNT, max_atoms=3)
    parts = x.split()
    volume = (x.volume / x.num_atoms).numpy()
    rows = np.random.default_rng(0).permutation(1265)[:COUNT]
    pd.DataFrame(
        {
            "material_id": [f"mp-{k}" for k in range(COUNT)],
            "mbid": [f"mb-phonons-{k + 1:04d}" for k in rows],
            "numbers": [p.numbers.tolist() for p in parts],
            "frac_coords": [p.frac.flatten().tolist() for p in parts],
            "lattice": [p.lattice.flatten().tolist() for p in parts],
            "n_atoms": x.num_atoms.tolist(),
            "last phdos peak": np.where(np.arange(COUNT) == 7, np.nan, 10 * volume),
        }
    ).to_parquet(folder / "properties" / "matbench_phonons.parquet")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    config = FourierFrameNetConfig(16, 1, 1, 2, 4, 8, 8, 8, 4, 8, 4.0, chiral=False)
    path = tmp_path_factory.mktemp("weights") / "pfm.safetensors"
    save_model(ModelConfig(config, noise=False).build(), path, {})
    return str(path)


def test_splits_are_60_20_20_apart_and_the_same_for_all(root: Path) -> None:
    data = load_task(root, "phonons")
    assert len(data) == COUNT - 1  # a crystal without a label is left out
    parts = split(data, 0)
    assert [len(parts[name]) for name in ("train", "val", "test")] == [35, 12, 12]
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(COUNT - 1))
    again, other = split(data, 0), split(data, 1)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)
    assert not np.array_equal(parts["test"], other["test"])
    thin = split(data, 0, max_train=9, max_test=4)
    assert [len(thin[name]) for name in ("train", "val", "test")] == [9, 3, 4]
    assert all(set(thin[name]) <= set(parts[name]) for name in parts)


def test_official_folds_are_those_of_all_rows(root: Path) -> None:
    data = load_task(root, "phonons")
    assert data.rows is not None
    pieces = [test for _, test in KFold(5, shuffle=True, random_state=FOLD_SEED).split(np.arange(1265))]
    tested = []
    for fold in range(5):
        parts = split(data, fold, "official")
        assert set(data.rows[parts["test"]]) <= set(pieces[fold])
        assert not set(parts["train"]) & set(parts["test"]) and not set(parts["val"]) & set(parts["test"])
        tested += parts["test"].tolist()
    assert sorted(tested) == list(range(COUNT - 1))
    with pytest.raises(InputError, match="folds 0 to 4"):
        split(data, 5, "official")
    with pytest.raises(InputError, match="'odd'"):
        split(data, 0, "odd")


def test_a_run_measures_what_it_says_and_goes_on(
    root: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(seeds=(0, 1), seen=20)
    rows = ("mean", "magpie-rf", "random", "pfm", "pfm-frozen", "pfm-ridge")
    given = {"encoders": {"pfm": weights}, "out": tmp_path, "progress": False}
    result = run(root, ["phonons"], rows, settings, **given)  # type: ignore[arg-type]
    cells = result["tasks"]["phonons"]["rows"]
    assert set(cells) == {f"{row}@100" for row in rows}
    data = load_task(root, "phonons")
    expected = []
    for seed in (0, 1):
        parts = split(data, seed)
        expected.append(np.abs(data.y[parts["test"]] - data.y[parts["train"]].mean()).mean())
    assert cells["mean@100"]["seeds"] == pytest.approx(expected)
    low, high = cells["mean@100"]["interval"]
    assert low < cells["mean@100"]["mae"] < high
    for row in rows:
        gain, apart = (
            cells[f"{row}@100"]["minus_random"],
            cells[f"{row}@100"]["mae"] - cells["random@100"]["mae"],
        )
        if row == "random":
            assert gain is None
            continue
        assert gain["mae"] == pytest.approx(apart, abs=2e-3 * cells["random@100"]["mae"])  # kept to 4 digits
        assert gain["interval"][0] <= gain["mae"] <= gain["interval"][1] and gain["seeds"] == 2
    assert result["tasks"]["phonons"]["coverage"] == (COUNT - 1) / 1265
    assert result["tasks"]["phonons"]["paper"]["pfm"] == 38.181
    kept = json.loads((tmp_path / "result.json").read_text())
    assert kept["tasks"] == json.loads(json.dumps(result["tasks"]))

    monkeypatch.setattr(matbench, "_predict", lambda *_: pytest.fail("computed again"))
    again = run(root, ["phonons"], rows, settings, **given)  # type: ignore[arg-type]
    assert again["tasks"] == result["tasks"]
    other = tmp_path / "other.safetensors"
    save_model(ModelConfig(load_model(weights).config.encoder, noise=False).build(), other, {})
    with pytest.raises(InputError, match="'pfm' with other weights"):
        run(root, ["phonons"], rows, settings, **given | {"encoders": {"pfm": str(other)}})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="seen = 20, not 21"):
        run(root, ["phonons"], rows, Settings(seeds=(0, 1), seen=21), **given)  # type: ignore[arg-type]


def test_shares_are_of_the_training_labels(root: Path, weights: str, tmp_path: Path) -> None:
    settings = Settings(seeds=(0,), shares=(20, 100))
    given = {"encoders": {"pfm": weights}, "out": tmp_path, "progress": False}
    found = run(root, ["phonons"], ["mean"], settings, **given)["tasks"]["phonons"]["rows"]  # type: ignore[arg-type]
    assert (found["mean@20"]["train"], found["mean@100"]["train"]) == (7, 35)


def test_taught_labels_are_left_out(root: Path, tmp_path: Path) -> None:
    result = run(
        root, ["mp_e_form"], ["dao-p", "dao-p-ridge"], Settings(seeds=(0,)), out=tmp_path, progress=False
    )
    assert result["tasks"] == {} and result["left_out"][0]["row"] == "dao-p"


@pytest.mark.parametrize(("row", "file"), [("dao-p", "dao-p"), ("ready", "log-k")])
def test_rows_are_of_the_weights_they_name(root: Path, tmp_path: Path, row: str, file: str) -> None:
    """And results with other weights are not mixed with new ones."""
    prints = _fingerprints([], ["log_kvrh"], [row], ENCODERS)
    assert prints == {("log_kvrh", row): fingerprint(load_model(file))}
    with pytest.raises(InputError, match="other weights"):
        _fingerprints([{"task": "log_kvrh", "row": row, "weights": "old"}], ["log_kvrh"], [row], ENCODERS)


def test_bad_requests_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'jdft2d'"):
        run(root, ["jdft2d"], out=tmp_path)
    with pytest.raises(InputError, match="--encoder rr=FILE"):
        run(root, ["phonons"], ["rr"], out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_paper_has_a_number_for_every_task_of_its_own() -> None:
    own = [task for task in TASKS.values() if not task.official]
    assert len(own) == 8
    assert all(len(task.paper) == 6 for task in own)


def table(count: int, seed: int) -> pd.DataFrame:
    """Made-up crystals and energies as CrysDB writes them."""
    x = rand_crystals(seed, count, max_atoms=3)
    parts = x.split()
    return pd.DataFrame(
        {
            "material_id": [f"mp-{seed}-{k}" for k in range(count)],
            "numbers": [p.numbers.tolist() for p in parts],
            "frac_coords": [p.frac.flatten().tolist() for p in parts],
            "lattice": [p.lattice.flatten().tolist() for p in parts],
            "n_atoms": x.num_atoms.tolist(),
            "formation_energy_per_atom": (x.volume / x.num_atoms).numpy(),
        }
    )


def test_mp_20_keeps_its_own_splits(tmp_path: Path, weights: str) -> None:
    crysdb = table(30, 1)
    crysdb["split"] = np.where(np.arange(30) % 3 == 2, "val", "train")
    crysdb["benchmark"] = np.resize(["mp_20_train", None, "mp_20_val"], 30)
    (tmp_path / "crysdb").mkdir()
    (tmp_path / "tests").mkdir()
    crysdb.to_parquet(tmp_path / "crysdb" / "mp.parquet")
    table(7, 2).to_parquet(tmp_path / "tests" / "mp_20_test.parquet")
    data = load_task(tmp_path, "mp_20_e_form")
    for seed in (0, 1):
        parts = split(data, seed)
        assert {name: len(ids) for name, ids in parts.items()} == {"train": 10, "val": 10, "test": 7}
    wanted = crysdb["formation_energy_per_atom"].to_numpy()
    assert data.y[parts["train"]] == pytest.approx(wanted[::3]), "mp_20_train"
    assert data.y[parts["val"]] == pytest.approx(wanted[2::3]), "mp_20_val"
    assert len(split(data, 0, max_test=3)["test"]) == 3

    rows, out = ["mean", "pfm"], tmp_path / "out"
    kept, given = tmp_path / "kept", {"encoders": {"pfm": weights}, "progress": False}
    result = run(tmp_path, ["mp_20_e_form"], rows, Settings((0,), seen=10), out=out, keep=kept, **given)  # type: ignore[arg-type]
    assert [p.name for p in kept.iterdir()] == ["mp_20_e_form-pfm-0-100.safetensors"]
    again = PropertyPredictor.load(kept / "mp_20_e_form-pfm-0-100.safetensors")
    assert (again.name, again.unit) == ("formation-energy", "eV/atom")
    x = pack(data.crystals[parts["test"]], labels=())[:]
    mae = np.abs(again.predict(x) - data.y[parts["test"]]).mean()
    assert mae == pytest.approx(result["tasks"]["mp_20_e_form"]["rows"]["pfm@100"]["mae"], rel=1e-4)


def test_shipped_models_are_measured_on_what_they_have_not_learned(root: Path, tmp_path: Path) -> None:
    for task, settings, words in (
        ("phonons", Settings((0,)), "no shipped model predicts 'phonons'"),
        ("log_kvrh", Settings((1,)), "--seeds 0"),
        ("log_kvrh", Settings((0,), folds="official"), "--seeds 0"),
    ):
        with pytest.raises(InputError, match=words):
            run(root, [task], ["ready"], settings, out=tmp_path)


@pytest.mark.parametrize("task", [task for task in TASKS.values() if task.ready], ids=lambda task: task.ready)
def test_ready_models_are_shipped_and_find_the_order_of_crystals(task: Task) -> None:
    predictor = PropertyPredictor.load(task.ready)
    assert (predictor.name, predictor.unit) == (task.ready, task.unit)
    soft, hard = SOFT_AND_HARD[task.ready]
    x = CrystalBatch.cat([soft, hard])
    low, high = predictor.predict(x)
    assert high - low > 0.5
    one, std = predictor.predict(x[torch.tensor([1])], return_std=True)
    assert one[0] == pytest.approx(high, abs=1e-4) and std[0] > 0


@pytest.mark.parametrize("name", TASKS)
def test_real_tasks_are_within_the_official_ones(shared_data: Path, name: str) -> None:
    if TASKS[name].ids:
        pytest.skip("reads the whole corpus: minutes")
    data = load_task(shared_data, name)
    assert np.isfinite(data.y).all() and len(data) > 500
    if not TASKS[name].stand_in:
        assert len(data) <= TASKS[name].size
    if data.rows is not None:
        assert len(set(data.rows.tolist())) == len(data)
        assert 0 <= data.rows.min() <= data.rows.max() < TASKS[name].size
