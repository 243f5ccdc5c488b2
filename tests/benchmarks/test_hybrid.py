"""The hybrid benchmark counts what it should, goes on when stopped, and feeds the ranker's fit."""

import json
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure

from crystalml.benchmarks.hybrid import Setup, run
from crystalml.benchmarks.ranker import fit
from crystalml.errors import InputError
from crystalml.hybrid.rank import Ranker
from crystalml.prototypes import PrototypeAtlas

BARE = Setup(potential=None)


@pytest.fixture(scope="module")
def atlas() -> PrototypeAtlas:
    sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
    return PrototypeAtlas.from_structures(
        [
            Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.3), ["Na", "F"], sites),
            Structure.from_spacegroup("Pm-3m", Lattice.cubic(4.1), ["Cs", "Cl"], sites),
        ],
        card={"name": "salts"},
    )


def test_rock_salts_are_matched_and_a_stopped_run_goes_on(
    salts: Path, atlas: PrototypeAtlas, tmp_path: Path
) -> None:
    options = {"shots": (1, 2), "progress": False, "table": True, "out": tmp_path}
    first = run(salts, BARE, atlas, n=2, **options)
    path = tmp_path / "matches.jsonl"
    before = path.read_text()
    assert first["targets"] == 2 and len(before.splitlines()) == 2
    result = run(salts, BARE, atlas, **options)
    assert path.read_text().startswith(before) and len(path.read_text().splitlines()) == 5
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result["scores"][1]["match_rate"] == 1.0 and result["scores"][1]["rmse"] < 1e-3
    with pytest.raises(InputError, match="pool"):
        run(salts, Setup(potential=None, pool=7), atlas, **options)


def test_a_ranker_is_fitted_to_what_the_benchmark_wrote(
    salts: Path, atlas: PrototypeAtlas, tmp_path: Path
) -> None:
    run(salts, BARE, atlas, shots=(1,), table=True, progress=False, out=tmp_path / "a")
    report = fit([tmp_path / "a"], tmp_path / "ranker.json")
    ranker = Ranker.load(tmp_path / "ranker.json")
    assert ranker.weights["score"] > 0 and ranker.weights["gap"] == 0
    assert ranker.card["targets"] == 5 and "mean_log_likelihood" in report["relaxed, ranked anew"]
    kept = Ranker(dict.fromkeys(ranker.weights, 0.0) | {"score": 1.5}, {"made": "elsewhere"})
    fit([tmp_path / "a"], tmp_path / "second.json", first=kept)
    second = Ranker.load(tmp_path / "second.json")
    assert second.weights == kept.weights and second.card["first"] == kept.card
    assert second.after["log_share"] > 0 and second.after["depth"] == 0  # no potential was asked
    with pytest.raises(InputError, match=r"proposals\.jsonl"):
        fit([tmp_path / "nothing"], tmp_path / "r.json")
