"""Stage II data: which crystals move, how far they are believed, what is left of their labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from crystalml import relax_data as module
from crystalml.crystal import CrystalBatch
from crystalml.datasets.packed import PackedDataset
from crystalml.errors import InputError
from crystalml.predict import Predictor
from crystalml.relax_data import relax_data
from crystalml.relaxation.batch import Frame
from crystalml.testing import rand_crystals

HULL = [0.0, 0.08, 0.0801, 0.3, 0.5, 0.51, np.nan, 0.2]
INSIDE = [2, 3, 4, 7]


@pytest.fixture(scope="module")
def model(tiny_potential):
    return tiny_potential()


@pytest.fixture(scope="module")
def data() -> PackedDataset:
    x = rand_crystals(1, len(HULL), max_atoms=5, min_distance=2.0, dtype=torch.float32)
    labels = {"energy_above_hull": HULL, "energy": np.arange(8.0), "benchmark": np.ones(8)}
    forces = np.ones((len(x.numbers), 3))
    return PackedDataset.from_arrays(
        x.numbers.numpy(), x.frac.numpy(), x.lattice.numpy(), x.num_atoms.numpy(),
        {name: np.asarray(value) for name, value in labels.items()}, {"forces": forces},
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(data, model):
    return relax_data(data, model, progress=False, device="cpu")


def test_only_the_window_is_asked_and_the_rest_stays(found, data):
    assert [row["crystal"] for row in found.rows] == INSIDE
    moved = found.data.labels["relaxed"].bool()
    assert moved.any() and set(moved.nonzero()[:, 0].tolist()) <= set(INSIDE)
    same = [i for i in range(len(data)) if not moved[i]]
    for name in ("frac", "lattice", "numbers"):
        assert torch.equal(getattr(found.data[same], name), getattr(data[same], name))
    assert torch.equal(found.data.num_atoms, data.num_atoms)


def test_the_energy_falls_as_far_as_the_rows_say(found, data, model):
    moved = found.data.labels["relaxed"].nonzero()[:, 0]
    before, after = (Predictor(model)(x[moved], forces=False)["energy_per_atom"] for x in (data, found.data))
    rows = {row["crystal"]: row for row in found.rows}
    claimed = torch.tensor([rows[i]["before"] - rows[i]["after"] for i in moved.tolist()]).double()
    assert (after < before).all()
    assert torch.allclose(before - after, claimed, atol=1e-4)
    assert found.summary()["mean_fall"] == pytest.approx(float(claimed.mean()), abs=1e-5)


def test_labels_of_the_old_geometry_are_gone(found, data):
    moved = found.data.labels["relaxed"].bool()
    for name in ("energy", "energy_above_hull"):
        assert found.data.labels[name][moved].isnan().all()
        assert torch.equal(found.data.labels[name][~moved].isnan(), data.labels[name][~moved].isnan())
    assert torch.equal(found.data.labels["benchmark"], data.labels["benchmark"])
    atoms = moved.repeat_interleave(data.num_atoms.long())
    assert found.data.site_labels["forces"][atoms].isnan().all()
    assert found.data.site_labels["forces"][~atoms].eq(1).all()


def test_relaxed_cells_stand_upright(found):
    lattice = found.data.lattice[found.data.labels["relaxed"].bool()]
    assert (lattice[:, 0, 1] == 0).all() and (lattice[:, 2, :2] == 0).all()
    assert (torch.linalg.det(lattice) > 0).all()


def test_it_goes_on_where_it_was_killed(found, data, model, tmp_path, monkeypatch):
    def run():
        return relax_data(data, model, folder=tmp_path / "rows", progress=False, device="cpu")

    whole = module._row
    done = []

    def dies(crystal, result):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(crystal)
        return whole(crystal, result)

    monkeypatch.setattr(module, "_row", dies)
    with pytest.raises(KeyboardInterrupt):
        run()
    asked = []
    monkeypatch.setattr(module, "_row", lambda i, result: asked.append(i) or whole(i, result))
    again = run()
    assert sorted([*asked, *done]) == INSIDE
    assert torch.allclose(again.data.frac, found.data.frac, atol=1e-5)
    assert torch.allclose(again.data.lattice, found.data.lattice, atol=1e-4)
    with pytest.raises(InputError, match="max_steps"):
        relax_data(data, model, max_steps=3, folder=tmp_path / "rows", progress=False, device="cpu")


def crystal(a: float, gap: float = 2.0) -> CrystalBatch:
    frac = torch.tensor([[0.0, 0, 0], [gap / a, 0, 0]], dtype=torch.float64)
    return CrystalBatch(torch.tensor([3, 9]), frac, a * torch.eye(3).double()[None], torch.tensor([2]))


@pytest.mark.parametrize(
    ("end", "energy", "reason"),
    [
        (crystal(4.1), -1.0, ""),
        (crystal(4.1), 0.0, "energy does not fall"),
        (crystal(4.0 * 1.26 ** (1 / 3)), -1.0, "volume"),
        (crystal(4.0 * 0.74 ** (1 / 3)), -1.0, "volume"),
        (crystal(4.1, gap=0.49), -1.0, "closer than 0.5"),
    ],
)
def test_guards(end, energy, reason):
    said = module._guard(Frame(crystal(4.0), 0.0, 1.0), Frame(end, energy, 0.1))
    assert said.startswith(reason) if reason == "" else reason in said
    assert bool(said) == bool(reason)


def test_atoms_of_neighbouring_images_count_as_close():
    thin = crystal(4.0)
    start = thin.replace(lattice=torch.diag(torch.tensor([4.0, 4.0, 0.45])).double()[None])
    assert "closer" in module._guard(Frame(start, 0.0, 1.0), Frame(start, -1.0, 0.1))


def test_elements_that_the_model_has_not_seen_stay(data, tiny_potential):
    model = tiny_potential()
    model.card = {"elements": ["H"]}
    found = relax_data(data, model, progress=False, device="cpu")
    said = found.summary()
    assert said["moved"] == 0 and said["kept"] == {"elements unknown to the model": 4}
    assert np.isnan(said["mean_fall"])
    assert not found.data.labels["relaxed"].any()


def test_bad_requests(data, model):
    with pytest.raises(InputError, match=r"0\.5, 0\.1"):
        relax_data(data, model, window=(0.5, 0.1))
    bare = PackedDataset(data.numbers, data.frac, data.lattice, data.num_atoms, {})
    with pytest.raises(InputError, match="energy_above_hull"):
        relax_data(bare, model)


def test_command_line(data, model, tmp_path: Path):
    from typer.testing import CliRunner

    from crystalml import cli
    from crystalml.training.checkpoint import save_model

    data.save(tmp_path / "a.safetensors")
    save_model(model, tmp_path / "m.safetensors", {"name": "tiny"})
    line = ["relax-data", tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors", "-q"]
    line += ["--model", tmp_path / "m.safetensors", "--device", "cpu", "--max-steps", 2]
    result = CliRunner().invoke(cli.app, [str(word) for word in line])
    assert result.exit_code == 0 and "4 in the window" in result.output
    back = PackedDataset.load(tmp_path / "b.safetensors")
    assert len(back) == len(data) and "relaxed" in back.labels
