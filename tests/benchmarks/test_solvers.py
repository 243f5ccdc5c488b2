"""Every solver at every number of evaluations, in a table and a picture."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crystalml import recipes
from crystalml.benchmarks import csp, solvers
from crystalml.errors import InputError
from crystalml.metrics.match import TargetMatches
from crystalml.models.model import CrystalModel


@pytest.fixture(autouse=True)
def unmatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """No comparisons: an untrained model draws huge cells, over which the matcher takes seconds."""

    def compare(samples: list[list[object]], targets: list[object], *_: object, **__: object) -> list[Any]:
        return [TargetMatches("X", [0.1] * len(row), [None] * len(row), None, 0) for row in samples]

    monkeypatch.setattr(csp, "compare", compare)


def test_evaluations_are_kept_to(
    salts: Path, tiny_model: Callable[..., CrystalModel], tmp_path: Path
) -> None:
    result = solvers.run(
        salts, tiny_model(), solvers=["pc", "euler", "heun"], evaluations=[2, 6, 300], device="cpu",
        progress=False, picture=tmp_path / "p.png", out=tmp_path / "out",
    )  # fmt: skip
    found = [(row["solver"], row["steps"], row["evaluations"]) for row in result["rows"]]
    assert found == [
        ("pc", 1, 2), ("pc", 3, 6), ("pc", 150, 300), ("euler", 2, 2), ("euler", 6, 6),
        ("heun", 1, 1), ("heun", 3, 5),
    ]  # fmt: skip
    written = json.loads((tmp_path / "out" / "result.json").read_text())
    assert written == json.loads(json.dumps(result))
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_gemsdiff_evaluates_once_a_step(salts: Path, tmp_path: Path) -> None:
    model, names = recipes.gemsdiff("tiny").model.build(), ["pc", "ancestral"]
    result = solvers.run(
        salts, model, solvers=names, evaluations=[3], n=2, device="cpu", progress=False, out=tmp_path / "out"
    )  # type: ignore[arg-type]
    assert [(row["steps"], row["evaluations"]) for row in result["rows"]] == [(3, 3), (3, 3)]


def test_bad_requests(salts: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rk45"):
        solvers.run(salts, solvers=["rk45"], out=tmp_path)  # type: ignore[list-item]
    with pytest.raises(InputError, match="at least 2"):
        solvers.run(salts, evaluations=[1], out=tmp_path)
