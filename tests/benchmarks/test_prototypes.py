"""The substitution benchmark counts what it should, on an atlas of rock salts."""

import json
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure

from crystalml.benchmarks.prototypes import run
from crystalml.errors import FileReadError, InputError
from crystalml.prototypes import PrototypeAtlas


@pytest.fixture(scope="module")
def atlas() -> PrototypeAtlas:
    sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
    return PrototypeAtlas.from_structures(
        [
            Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.3), ["Na", "F"], sites),
            Structure.from_spacegroup("Fm-3m", Lattice.cubic(6.0), ["Na", "Br"], sites),
        ],
        card={"name": "salts"},
    )


def test_rock_salts_are_matched(salts: Path, atlas: PrototypeAtlas, tmp_path: Path) -> None:
    result = run(salts, atlas, shots=(1, 2), out=tmp_path / "out", progress=False)
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == json.loads(json.dumps(result))
    assert [(s["shots"], s["match_rate"], s["total"]) for s in result["scores"]] == [(1, 1.0, 5), (2, 1.0, 5)]
    assert result["scores"][0]["rmse"] < 1e-3
    assert result["atlas"] == {"prototypes": 1, "name": "salts"}
    assert result["mean_predictions"] == 1
    assert len((tmp_path / "out" / "matches.jsonl").read_text().splitlines()) == 5


def test_an_atlas_without_the_type_matches_nothing(salts: Path, tmp_path: Path) -> None:
    result = run(salts, PrototypeAtlas.from_structures([]), shots=(1,), out=tmp_path, progress=False)
    assert result["without_prediction"] == 5
    assert result["scores"][0]["match_rate"] == 0
    assert result["scores"][0]["rmse"] is None


def test_bad_requests(salts: Path, atlas: PrototypeAtlas, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shots"):
        run(salts, atlas, shots=(), out=tmp_path)
    with pytest.raises(InputError, match="mp_20_val"):
        run(salts, atlas, benchmark="mp_20", out=tmp_path)


def test_targets_from_structure_files(tmp_path):
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    (tmp_path / "cifs").mkdir()
    salt.get_primitive_structure().to(str(tmp_path / "cifs" / "salt.cif"))
    result = run(tmp_path / "cifs", shots=[1], out=tmp_path / "out", progress=False)
    assert result["targets"] == 1 and result["scores"][0]["match_rate"] == 1
    (tmp_path / "none").mkdir()
    with pytest.raises(FileReadError, match="there is no CIF"):
        run(tmp_path / "none", out=tmp_path / "out2", progress=False)
