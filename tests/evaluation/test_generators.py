"""Generators side by side: every target has its sample, nothing drops out, a stopped run goes on."""

import json

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystalml.benchmarks import csp
from crystalml.errors import InputError
from crystalml.evaluation import generators
from crystalml.prototypes import PrototypeAtlas
from crystalml.training.checkpoint import save_model


@pytest.fixture
def table(tmp_path, salts):
    pa = pytest.importorskip("pyarrow", reason="reading parquet needs pyarrow")
    import pyarrow.parquet as parquet

    rows = [
        {
            "material_id": f"salt-{i}",
            "numbers": list(salt.atomic_numbers),
            "frac_coords": salt.frac_coords.ravel().tolist(),
            "lattice": salt.lattice.matrix.ravel().tolist(),
        }
        for i, salt in enumerate(salts)
    ]
    path = tmp_path / "salts.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def atlas():
    sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
    known = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.3), ["Na", "F"], sites)
    return PrototypeAtlas.from_structures([known])


@pytest.fixture
def compare(monkeypatch, tiny_potential, table, atlas, tmp_path):
    """The benchmark with an atlas of rock salt and a small potential."""
    monkeypatch.setattr(PrototypeAtlas, "default", classmethod(lambda cls: atlas))
    potential = tmp_path / "potential.safetensors"
    save_model(tiny_potential(), potential, {"name": "toy"})

    def run(*names, **settings):
        options = {"out": tmp_path / "out", "energy_model": str(potential), "embedder": str(potential)}
        return generators.run(table, names, device="cpu", progress=False, **{**options, **settings})

    return run


def test_substitution_finds_the_salts(compare, tmp_path) -> None:
    result = compare("prototypes")
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == json.loads(json.dumps(result))
    row = result["rows"][0]
    assert row["figures"]["match_rate_1"]["value"] == 1 and row["figures"]["rmse_1"]["value"] < 1e-3
    assert row["figures"]["valid_structure"]["value"] == 1 and row["unreadable"] == [0]
    assert row["structures_per_second"] == pytest.approx(5 / row["sampling_seconds"])
    assert (tmp_path / "out" / "prototypes" / "report.html").exists()


def test_what_is_missing_fails_and_stays(compare, monkeypatch) -> None:
    monkeypatch.setattr(
        PrototypeAtlas, "default", classmethod(lambda cls: PrototypeAtlas.from_structures([]))
    )
    with pytest.raises(InputError, match="none of the 5 samples"):
        compare("prototypes")


def test_networks_are_sampled_once(compare, monkeypatch, tiny_model, tmp_path) -> None:
    path = tmp_path / "net.safetensors"
    save_model(tiny_model(), path, {})

    def compact(targets, missing, job, seed, budget, store, progress):
        """Salt-like cells, one of them not a number, instead of an untrained network's huge ones."""
        assert seed == 3 and job.sampler.evaluations == 4
        drawn = []
        for k, (i, shot) in enumerate(missing):
            cell = np.eye(3) * (np.nan if k == 2 else 4.0)
            frac = [0.0, 0.0, 0.0, 0.5, 0.5, 0.4]
            drawn.append(csp.Sample(targets.ids[i], shot, 0.5, cell.ravel().tolist(), frac))
        store.append(drawn)
        return drawn

    monkeypatch.setattr(csp, "_draw", compact)
    first = compare(str(path), steps=2, seed=3)
    monkeypatch.setattr(
        csp, "_draw", lambda targets, missing, *rest: [] if not missing else pytest.fail("drawn again")
    )
    again = compare(str(path), "prototypes", steps=2, seed=3)
    row = first["rows"][0]
    assert again["rows"][0] == row
    assert row["unreadable"] == [1] and row["figures"]["valid_structure"]["value"] == 4 / 5
    assert row["sampling_seconds"] == 2.5 and row["evaluations"] == 4
    assert row["figures"]["match_rate_1"]["value"] < again["rows"][1]["figures"]["match_rate_1"]["value"]


def test_repeats_are_further_seeds(compare, monkeypatch, tiny_model, tmp_path) -> None:
    path = tmp_path / "net.safetensors"
    save_model(tiny_model(), path, {})

    def spread(targets, missing, job, seed, budget, store, progress):
        """Salt-like cells; the larger the seed, the more of them are not a number."""
        drawn = []
        for k, (i, shot) in enumerate(missing):
            cell = np.eye(3) * (np.nan if k < seed - 3 else 4.0)
            drawn.append(csp.Sample(targets.ids[i], shot, 0.5, cell.ravel().tolist(), [0.0] * 3 + [0.5] * 3))
        store.append(drawn)
        return drawn

    monkeypatch.setattr(csp, "_draw", spread)
    result = compare(str(path), "prototypes", steps=2, seed=3, repeats=3)
    row, plain = result["rows"]
    assert row["repeats"]["valid_structure"] == [1.0, 0.8, 0.6] and row["unreadable"] == [0, 1, 2]
    assert row["mean"]["valid_structure"] == pytest.approx(0.8)
    assert row["deviation"]["valid_structure"] == pytest.approx(0.2)
    assert row["sampling_seconds"] == 7.5 and row["structures_per_second"] == 2
    assert len(plain["repeats"]["valid_structure"]) == 1 and plain["deviation"] == {}


def test_names_are_given_once(compare) -> None:
    for names in ((), ("prototypes", "prototypes")):
        with pytest.raises(InputError, match="once"):
            compare(*names)
