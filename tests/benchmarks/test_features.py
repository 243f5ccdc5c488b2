"""Featurizers that are installed get a speed, a missing package is named, too few crystals are refused."""

import json
import sys

import pytest

from crystalml.benchmarks.features import REFERENCE, run
from crystalml.errors import InputError


def test_speeds_of_what_is_there(salts, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matminer", None)  # as if it were not installed
    found = run(salts, n=4, repeats=1, out=tmp_path / "speeds.json")
    speeds = found["structures_per_second"]
    assert speeds.pop(REFERENCE[0]) is None
    assert all(speed > 0 for speed in speeds.values()) and "FourierFrameNetFeaturizer" in speeds
    assert json.loads((tmp_path / "speeds.json").read_text())["crystals"] == 4


def test_too_few_crystals(salts) -> None:
    with pytest.raises(InputError, match="holds 5"):
        run(salts, n=6)
