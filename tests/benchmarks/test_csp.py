"""The structure prediction benchmark: resumable, independent of batching, and right about what it counts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crystalml.benchmarks import csp, targets
from crystalml.errors import InputError, UnsupportedError
from crystalml.metrics.match import TargetMatches
from crystalml.models.model import CrystalModel

Tiny = Callable[..., CrystalModel]


@pytest.fixture
def unmatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """No comparisons: an untrained model draws huge cells, over which the matcher takes seconds."""

    def compare(samples: list[list[object]], targets: list[object], *_: object, **__: object) -> list[Any]:
        return [TargetMatches("X", [None] * len(row), [None] * len(row), None, 0) for row in samples]

    monkeypatch.setattr(csp, "compare", compare)


def run(salts: Path, model: CrystalModel, out: Path, **options: Any) -> dict[str, Any]:
    return csp.run(
        salts,
        model,
        **{"shots": (1, 2), "steps": 2, "gated": False, "device": "cpu", "progress": False, **options},
        out=out,
    )


def geometry(out: Path) -> dict[tuple[str, int], list[float]]:
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    return {(line["id"], line["shot"]): line["lattice"] + line["frac"] for line in lines}


@pytest.mark.usefixtures("unmatched")
def test_result_says_what_was_done(salts: Path, tiny_model: Tiny, tmp_path: Path) -> None:
    result = run(salts, tiny_model(), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == json.loads(json.dumps(result))
    assert [(s["shots"], s["gated"], s["total"]) for s in result["scores"]] == [(1, False, 5), (2, False, 5)]
    assert result["steps"] == 2
    assert result["structures_per_second"] > 0
    assert {"cpu", "threads", "date", "command"} <= set(result["environment"])
    matches = (tmp_path / "out" / "matches.jsonl").read_text().splitlines()
    assert len(matches) == 5
    assert len(geometry(tmp_path / "out")) == 10


@pytest.mark.usefixtures("unmatched")
def test_samples_do_not_depend_on_the_batch(salts: Path, tiny_model: Tiny, tmp_path: Path) -> None:
    run(salts, tiny_model(), tmp_path / "one", max_pairs=1)
    run(salts, tiny_model(), tmp_path / "all", max_pairs=10_000)
    one, together = geometry(tmp_path / "one"), geometry(tmp_path / "all")
    assert one.keys() == together.keys()
    for key, values in one.items():
        assert values == pytest.approx(together[key], rel=1e-3, abs=1e-3), key


@pytest.mark.usefixtures("unmatched")
def test_a_killed_run_goes_on(salts: Path, tiny_model: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(salts, tiny_model(), out)
    path = out / "samples.jsonl"
    before = path.read_bytes()
    path.write_bytes(before[: len(before) * 2 // 3])  # cuts a line in two
    run(salts, tiny_model(), out)
    assert sorted(geometry(out)) == sorted((f"salt-{i}", shot) for i in range(5) for shot in (0, 1))
    assert path.read_bytes().startswith(before[: before.rfind(b"\n", 0, len(before) * 2 // 3)])


@pytest.mark.usefixtures("unmatched")
def test_more_shots_draw_only_what_is_missing(salts: Path, tiny_model: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(salts, tiny_model(), out, n=2, shots=(1,))
    before = (out / "samples.jsonl").read_text()
    run(salts, tiny_model(), out, n=4, shots=(1, 3))
    after = (out / "samples.jsonl").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == 12


@pytest.mark.usefixtures("unmatched")
def test_other_settings_do_not_mix(salts: Path, tiny_model: Tiny, tmp_path: Path) -> None:
    run(salts, tiny_model(), tmp_path / "out")
    with pytest.raises(InputError, match="seed = 0, not 1"):
        run(salts, tiny_model(), tmp_path / "out", seed=1)
    with pytest.raises(InputError, match="steps = 2, not 3"):
        run(salts, tiny_model(), tmp_path / "out", steps=3)


def test_true_crystals_count_as_matches(salts: Path, tiny_model: Tiny, tmp_path: Path) -> None:
    """Put the targets in the place of three first samples: 3 of 5 in one shot, RMSE zero."""
    pytest.importorskip("smact", reason="the gate needs the extra `metrics`")
    out = tmp_path / "out"
    run(salts, tiny_model(), out)
    data = targets.read_test(salts)
    start = data.num_atoms.cumsum() - data.num_atoms
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    for line in lines:
        i = data.ids.index(line["id"])
        if i < 3 and line["shot"] == 0:
            line["lattice"] = data.lattice[i].ravel().tolist()
            line["frac"] = data.frac[start[i] : start[i] + data.num_atoms[i]].ravel().tolist()
        else:
            line["lattice"] = [float("nan")] * 9
    (out / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run(salts, tiny_model(), out, gated=True)
    assert [s["matched"] for s in result["scores"]] == [3, 3, 3, 3]
    assert all(s["rmse"] == pytest.approx(0, abs=1e-5) for s in result["scores"])
    assert result["failed_samples"] == 7


@pytest.mark.usefixtures("unmatched")
def test_guidance_changes_the_samples(salts: Path, tiny_model: Tiny, tmp_path: Path) -> None:
    run(salts, tiny_model(), tmp_path / "a", n=2, shots=(1,))
    run(salts, tiny_model(), tmp_path / "b", n=2, shots=(1,), guidance=5.0, energy_model=tiny_model())
    assert geometry(tmp_path / "a") != geometry(tmp_path / "b")


def test_bad_requests(salts: Path, tiny_model: Tiny, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1\.\.5"):
        run(salts, tiny_model(), tmp_path / "out", n=6)
    with pytest.raises(InputError, match="shots"):
        run(salts, tiny_model(), tmp_path / "out", shots=(0, 1))
    with pytest.raises(UnsupportedError, match="noise head"):
        run(salts, tiny_model(noise=False), tmp_path / "out")
