"""The energy benchmark: the plain mean over the crystals that have the label, whole and by class."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crystalml.benchmarks import energy
from crystalml.benchmarks.targets import read_test
from crystalml.datasets.arrays import Arrays, pack
from crystalml.errors import InputError
from crystalml.models.model import CrystalModel


def test_error_is_that_of_the_model(
    salts: Path, tiny_model: Callable[..., CrystalModel], tmp_path: Path
) -> None:
    model, out = tiny_model(), tmp_path / "energy.json"
    result = energy.run(salts, model, out=out, device="cpu", progress=False, max_pairs=70)
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    data = read_test(salts)[:4]  # the fifth has no label
    expected = np.abs(model.energy(pack(data, labels=())[:]).detach().numpy() + 2.0)
    assert result["crystals"] == 4
    assert result["mae"] == pytest.approx(expected.mean(), rel=1e-5)
    assert result["by_class"]["halide"]["crystals"] == 3
    assert result["by_class"]["oxide"]["mae"] == pytest.approx(expected[3], rel=1e-5)


def test_unknown_label(salts: Path, tiny_model: Callable[..., CrystalModel]) -> None:
    with pytest.raises(InputError, match="no label 'gap'"):
        energy.run(salts, tiny_model(), label="gap", device="cpu", progress=False)


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [
        ([29, 8, 17], "oxide"),
        ([11, 17], "halide"),
        ([30, 16], "chalcogenide"),
        ([31, 33], "pnictide"),
        ([29, 79], "metals only"),
        ([6], "other"),
        ([29, 1], "other"),
    ],
)
def test_classes(numbers: list[int], kind: str) -> None:
    n = len(numbers)
    one = Arrays(np.array(numbers, np.int8), np.zeros((n, 3)), np.eye(3)[None], np.array([n]))
    assert energy.element_class(one).tolist() == [kind]
