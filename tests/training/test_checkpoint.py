import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from crystalml.errors import ArchitectureError, WeightsError
from crystalml.models.model import CrystalModel
from crystalml.testing import rand_crystals
from crystalml.training.checkpoint import FORMAT, load_model_file, read_tensors, save_model, write_tensors

Tiny = Callable[..., CrystalModel]


def test_a_model_survives_the_file(tmp_path: Path, tiny_model: Tiny) -> None:
    model, path = tiny_model(), tmp_path / "m.safetensors"
    save_model(model, path, {"name": "tiny", "note": "Å"})
    back = load_model_file(path)
    x = rand_crystals(0, 3, dtype=torch.float32)
    assert torch.equal(back.energy(x), model.energy(x))
    assert back.card == {"name": "tiny", "note": "Å"} and not back.training
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_missing_folders_are_made(tmp_path: Path, tiny_model: Tiny) -> None:
    path = tmp_path / "not" / "there" / "m.safetensors"
    save_model(tiny_model(), path, {"name": "tiny"})
    assert load_model_file(path).card == {"name": "tiny"}


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path: Path, tiny_model: Tiny) -> None:
    model, full, half = tiny_model(), tmp_path / "f.safetensors", tmp_path / "h.safetensors"
    save_model(model, full, {})
    save_model(model, half, {}, torch.float16)
    assert half.stat().st_size < 0.6 * full.stat().st_size
    back, x = load_model_file(half), rand_crystals(0, 3, dtype=torch.float32)
    assert back.energy(x).dtype == torch.float32
    torch.testing.assert_close(back.energy(x), model.energy(x), atol=2e-2, rtol=2e-2)


def test_unreadable_files_say_which(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nowhere"):
        load_model_file(tmp_path / "nowhere.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(WeightsError, match="junk"):
        load_model_file(tmp_path / "junk.safetensors")


def test_foreign_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(ArchitectureError, match="crystalml train"):
        load_model_file(path)
    write_tensors(path, {"w": torch.zeros(2)}, {"progress": {}})
    with pytest.raises(ArchitectureError, match="no model"):
        load_model_file(path)


def test_weights_that_do_not_fit_their_description_are_refused(tmp_path: Path, tiny_model: Tiny) -> None:
    path = tmp_path / "m.safetensors"
    save_model(tiny_model(), path, {})
    tensors, meta = read_tensors(path)
    meta["model"]["encoder"]["depth"] = 5
    save_file(tensors, path, metadata={"format": FORMAT, "json": json.dumps(meta)})
    with pytest.raises(ArchitectureError, match="does not fit"):
        load_model_file(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    write_tensors(path, {"w": torch.ones(2)}, {})

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("crystalml.training.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_tensors(path, {"w": torch.zeros(2)}, {})
    assert torch.equal(read_tensors(path)[0]["w"], torch.ones(2))
