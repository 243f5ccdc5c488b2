"""The one door for weights: what is let in, what is refused, and that nothing happens unasked."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from crystalml.datasets.packed import PackedDataset
from crystalml.errors import ArchitectureError, ChecksumError, WeightsError
from crystalml.training.checkpoint import save_model
from crystalml.weights import list_models, load_model, register, registry
from crystalml.weights.registry import MAX_BYTES, REGISTRY, download

CARD = {
    "recipe": "dao_p",
    "size": "tiny",
    "licence": "MIT",
    "description": "A model for tests.",
    "elements": ["Na", "Cl"],
    "energy": {"units": "eV/atom", "reference": "formation energy"},
    "figures": {"MAE (eV/atom)": 0.1},
    "known_failures": ["slabs"],
    "max_atoms": 20,
}


@pytest.fixture
def file(tmp_path, tiny_model) -> Path:
    path = tmp_path / "run" / "best.safetensors"
    path.parent.mkdir()
    save_model(tiny_model(), path, CARD)
    return path


@pytest.fixture
def shelf(tmp_path, file) -> Path:
    path = tmp_path / "shelf" / "registry.json"
    path.parent.mkdir()
    register(file, "tiny-p", {"training_data": "none at all"}, registry=path)
    register(file, "tiny-g", registry=path)
    return path


def test_registered_models_load_with_their_card(shelf, tiny_model):
    model = load_model("tiny-p", registry=shelf)
    for key, value in tiny_model().state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    assert not model.training
    assert model.card["name"] == "tiny-p" and model.card["training_data"] == "none at all"
    assert model.card["energy"]["units"] == "eV/atom" and len(model.card["sha256"]) == 64


def test_fingerprints_tell_networks_apart_that_have_equal_weights(tiny_potential):
    """What compiled code and caches go by: settings that are no weights count, too."""
    model, other = tiny_potential(), tiny_potential()
    assert registry.fingerprint(other) == registry.fingerprint(model)
    other.config = replace(other.config, encoder=replace(other.config.encoder, scale=2.0))
    assert registry.fingerprint(other) != registry.fingerprint(model)


def test_listing_reads_only_the_registry(shelf):
    found = list_models(shelf)
    assert [info.name for info in found] == ["tiny-g", "tiny-p"]
    assert found[0].parameters > 1000 and found[0].elements == ["Na", "Cl"] and found[0].max_atoms == 20
    card = shelf.with_name("tiny-p.md").read_text()
    assert found[1].sha256 in card and "none at all" in card and "MAE (eV/atom)" in card


def test_registering_again_replaces_and_is_idempotent(shelf, file):
    before = shelf.read_bytes()
    own = shelf.with_name("tiny-p.safetensors")
    register(own, "tiny-p", {"training_data": "none at all"}, registry=shelf)
    assert shelf.read_bytes() == before
    assert not [path for path in shelf.parent.iterdir() if ".partial" in path.name]


def test_the_card_learns_from_the_training_set(file, shelf):
    data = PackedDataset(
        numbers=torch.tensor([11, 17, 11, 17] * 5, dtype=torch.int8),
        frac=torch.rand(20, 3),
        lattice=torch.eye(3).repeat(5, 1, 1),
        num_atoms=torch.full((5,), 4, dtype=torch.int16),
        labels={},
    )
    info = register(file, "tiny-p", {"max_atoms": 30}, data, registry=shelf)
    assert (info.elements, info.max_atoms) == (["Na", "Cl"], 30)  # what is said by hand has the last word
    assert info.formula_units == {"by_formula": {"1-1": 2}, "by_atoms": {"2": 2}}
    assert load_model("tiny-p", registry=shelf).card["formula_units"] == info.formula_units


def test_too_large_a_file_is_not_shipped(shelf, file, monkeypatch):
    monkeypatch.setattr(registry, "MAX_BYTES", 1000)
    with pytest.raises(WeightsError, match="1000"):
        register(file, "big", registry=shelf)
    assert MAX_BYTES == 16 * 2**20


def test_one_flipped_bit_is_a_checksum_error_naming_both_digests(shelf):
    path = shelf.with_name("tiny-p.safetensors")
    expected = json.loads(shelf.read_text())["models"]["tiny-p"]["sha256"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ChecksumError, match="Reinstall") as caught:
        load_model("tiny-p", registry=shelf)
    assert expected in str(caught.value) and registry.digest(path) in str(caught.value)


def test_missing_shipped_file_and_broken_registry(shelf):
    shelf.with_name("tiny-p.safetensors").unlink()
    with pytest.raises(WeightsError, match="missing"):
        load_model("tiny-p", registry=shelf)
    shelf.write_text("{")
    with pytest.raises(WeightsError, match="unreadable"):
        list_models(shelf)


def test_unknown_names_get_suggestions(shelf):
    with pytest.raises(WeightsError, match="did you mean 'tiny-p'"):
        load_model("tinyp", registry=shelf)
    with pytest.raises(WeightsError, match="nothing comes close"):
        load_model("qqqqqqqq", registry=shelf)


@pytest.mark.parametrize("as_type", [str, Path])
@pytest.mark.parametrize("dtype", [None, "float64", torch.float64])
def test_a_path_loads_without_the_registry(file, as_type, dtype):
    model = load_model(as_type(file), dtype=dtype)
    assert next(model.parameters()).dtype == (torch.float64 if dtype else torch.float32)
    assert model.card["recipe"] == "dao_p" and model.card["source"] == str(file)


def test_bad_files_raise_typed_errors(tmp_path, file, tiny_model):
    with pytest.raises(WeightsError, match="does not exist"):
        load_model(tmp_path / "none.safetensors")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="torn"):
        load_model(torn)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, foreign)
    with pytest.raises(ArchitectureError):
        load_model(foreign)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, tiny_model):
    from crystalml.training.checkpoint import write_tensors

    model = tiny_model()
    config = model.config.to_dict()
    for change in ({"dim": 24}, {"name": "newer-net"}, {"heads": 5}, {"depth": "two"}):
        path = tmp_path / "other.safetensors"
        changed = {**config, "encoder": {**config["encoder"], **change}}
        write_tensors(path, model.state_dict(), {"model": changed, "card": {}})
        with pytest.raises(ArchitectureError):
            load_model(path)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was opened')",))


@pytest.mark.parametrize("name", ["model.pt", "model.ckpt", "model.pkl", "model.bin", "a.safetensors"])
def test_pickles_are_never_opened(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError):
        load_model(path)


def test_hub_addresses(monkeypatch, file):
    import huggingface_hub

    asked = []

    def fetch(repo, name, revision=None):
        asked.append((repo, name, revision))
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    model = load_model("hf://lab/model")
    load_model("hf://lab/model/sub/p.safetensors@abc123")
    assert asked == [
        ("lab/model", "model.safetensors", None),
        ("lab/model", "sub/p.safetensors", "abc123"),
    ]
    assert model.card["source"] == "hf://lab/model"
    for wrong in ("hf://", "hf://lab", "hf://lab//x.safetensors"):
        with pytest.raises(WeightsError, match="hf://owner/repo"):
            download(wrong)
    with pytest.raises(WeightsError, match="can run code"):
        download("hf://lab/model/weights.pt")


def test_offline_hub_says_so_at_once(tmp_path):
    """HF_HUB_OFFLINE is read when huggingface_hub is imported, hence a process of its own."""
    code = (
        "from crystalml.weights import load_model\n"
        "from crystalml.errors import WeightsError\n"
        "try: load_model('hf://lab/none')\n"
        "except WeightsError as error: print(error)\n"
    )
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert "HF_HUB_OFFLINE" in done.stdout and "hf://lab/none" in done.stdout


def test_import_touches_neither_torch_nor_network_nor_disk(tmp_path):
    code = (
        "import sys, socket\n"
        "def no(*a, **k): raise SystemExit('network')\n"
        "socket.socket.connect = no\n"
        "from crystalml.weights import list_models\n"
        "list_models()\n"
        "print(sorted({'torch', 'huggingface_hub'} & set(sys.modules)))\n"
    )
    env = {"HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "[]"
    assert not list(tmp_path.iterdir())


NONE_YET = [pytest.param(None, marks=pytest.mark.skip("no weights are registered yet"))]


@pytest.mark.parametrize("info", list_models() or NONE_YET)
def test_every_shipped_model_is_whole(info):
    path = REGISTRY.parent / info.file
    registry.verify(path, info)
    assert path.stat().st_size == info.bytes <= MAX_BYTES
    for field in ("recipe", "licence", "description", "training_data", "elements"):
        assert getattr(info, field), f"{info.name}: the card lacks {field}"
    assert path.with_suffix(".md").read_text() == registry.render_card(info)
    model = load_model(info.name)
    assert bool(info.energy) == model.has_energy
    assert info.parameters == sum(p.numel() for p in model.parameters())
