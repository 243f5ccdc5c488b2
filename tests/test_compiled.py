"""Compiled potentials give what the network gives, wherever a model goes, and never what it no longer is."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from ase.build import bulk, fcc111, molecule

from crystalml import DaoCalculator, compile_potential, compiled
from crystalml.convert import to_batch
from crystalml.errors import UnsupportedError
from crystalml.models.cspnet import CSPNetConfig
from crystalml.models.heads import EnergyScale
from crystalml.models.model import CrystalModel, ModelConfig
from crystalml.models.periodic import PeriodicConfig
from crystalml.predict import Predictor


def potential(seed: int = 0) -> CrystalModel:
    torch.manual_seed(seed)
    model = ModelConfig(PeriodicConfig(8, 1, 2, 4, 4, 4, 4, 5.0), noise=False, energy=EnergyScale()).build()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model.eval()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("code")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "cache_folder", lambda: folder)
        yield folder


@pytest.fixture(scope="module")
def fast(cache: Path) -> CrystalModel:
    return compile_potential(potential(), device="cpu", progress=False)


@pytest.mark.parametrize(
    "atoms",
    [
        bulk("NaCl", "rocksalt", 5.6),
        bulk("NaCl", "rocksalt", 5.6).repeat((3, 2, 2)),
        fcc111("Cu", (1, 1, 3), vacuum=6.0),
        molecule("H2O"),
        bulk("Cu"),  # one atom
        molecule("H"),  # without neighbours
    ],
    ids=["two", "many", "slab", "molecule", "one", "alone"],
)
def test_compiled_and_plain_agree(fast: CrystalModel, atoms) -> None:  # type: ignore[no-untyped-def]
    atoms.rattle(0.05, seed=0)
    x = to_batch(atoms, dtype=torch.float32, bulk=False)
    plain = Predictor(potential())(x)
    with torch.inference_mode():
        found = Predictor(fast)(x)
    assert found.keys() == plain.keys()
    for key, value in plain.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)


def test_the_code_is_what_runs_and_one_file_serves_all(fast: CrystalModel, cache: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def refuse(*args: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(compiled, "build", refuse)
    again = compile_potential(potential(), device="cpu")
    assert len(list(cache.iterdir())) == 1
    for model in (again, copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert model.compiled is not None
        assert model.compiled.takes(torch.zeros(2, 2, 3))
        assert not model.compiled.takes(torch.zeros(1, 2, 3))
        assert not model.compiled.takes(torch.zeros(2, 2, 3).double())
    with pytest.raises(AssertionError, match="again"):
        compile_potential(potential(1), device="cpu")  # other weights


def test_a_calculator_compiles_and_travels(fast: CrystalModel, cache: Path) -> None:
    atoms = bulk("NaCl", "rocksalt", 5.5)
    atoms.calc = DaoCalculator(potential(), device="cpu", compile=True)
    assert atoms.calc.model.compiled is not None
    energy = atoms.get_potential_energy()
    assert DaoCalculator(potential(), device="cpu").get_potential_energy(atoms) == pytest.approx(energy)
    other = pickle.loads(pickle.dumps(atoms.calc))
    assert other.model.compiled is not None
    assert other.get_potential_energy(atoms) == energy


def test_weights_that_learn_are_no_longer_compiled(fast: CrystalModel) -> None:
    model = copy.deepcopy(fast)
    assert model.eval().compiled is not None
    assert model.train().compiled is None
    assert model.eval().compiled is None


def test_a_file_cut_short_is_made_anew(fast: CrystalModel, cache: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    monkeypatch.setattr(compiled, "build", lambda model, path, progress: path.write_bytes(whole))
    file.write_bytes(whole[: len(whole) // 2])
    assert compile_potential(potential(), device="cpu").compiled is not None
    assert file.read_bytes() == whole


def test_without_a_compiler_nothing_is_left_behind(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(compiled, "cache_folder", lambda: tmp_path / "code")

    def none() -> str:
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    with pytest.raises(UnsupportedError, match="C\\+\\+ compiler"):
        compile_potential(potential(), device="cpu", progress=False)
    assert not (tmp_path / "code").exists()


def test_only_potentials_are_compiled() -> None:
    model = ModelConfig(CSPNetConfig(8, 1, 2), energy=EnergyScale()).build().eval()
    with pytest.raises(UnsupportedError, match="potential"):
        compile_potential(model, device="cpu")
