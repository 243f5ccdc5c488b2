"""`crystalml check-calculator`: what it loads, what it prints, how it exits."""

from __future__ import annotations

import json

import pytest
from ase.calculators.emt import EMT
from typer.testing import CliRunner

from crystalml import cli
from crystalml.cli_check import factory
from crystalml.errors import InputError


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda *args: CliRunner().invoke(cli.app, ["check-calculator", *map(str, args)])


def test_a_sound_calculator_exits_with_zero(run, tmp_path):
    result = run("ase.calculators.emt:EMT", "--only", "forces,invariance", "-o", tmp_path / "emt.json")
    assert result.exit_code == 0, result.output
    assert "forces/bulk" in result.output and "11 pass" in result.output
    data = json.loads((tmp_path / "emt.json").read_text())
    assert data["target"] == "ase.calculators.emt:EMT" and data["settings"] == "{}"
    assert data["elements"] == "Cu-Au" and data["counts"] == {"pass": 11}


def test_a_broken_law_exits_with_one_and_is_reported_all_the_same(run, tmp_path):
    arguments = '{"epsilon": 0.1, "sigma": 1.9, "rc": 3.9}'
    result = run("ase.calculators.lj:LennardJones", "--kwargs", arguments, "--only", "smooth", "-q", "-o",
                 tmp_path / "lj.md")  # fmt: skip
    assert result.exit_code == 1, result.output
    assert "force jumps near 3.900 A" in (tmp_path / "lj.md").read_text()


def test_a_file_of_ones_own(run, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from ase.calculators.emt import EMT\ndef make(asap=False):\n    return EMT(asap_cutoff=asap)\n"
    )
    assert run(f"{path}:make", "--elements", "Ni,Al", "--only", "cells", "-q").exit_code == 0
    assert run(f"{path}:make", "--kwargs", '{"asap": true}', "--only", "cells", "-q").exit_code == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["EMT"], "module:name"),
        (["ase.calculators.emt:Nothing"], "Nothing"),
        (["no_such_module:x"], "no_such_module"),
        (["no_such_file.py:x"], "no_such_file"),
        (["ase.calculators.emt:EMT", "--kwargs", "[1]"], "JSON"),
        (["ase.calculators.emt:EMT", "-o", "x.txt"], ".json or .md"),
        (["ase.calculators.emt:EMT", "--only", "force"], "choose among"),
        (["ase.calculators.emt:EMT", "--elements", "Fe"], "not two"),
        (["ase.calculators.emt:EMT", "--elements", "Fe,O"], "computed no bulk"),
        (["ase.calculators.emt:EMT", "--dtype", "half"], "half"),
    ],
)
def test_mistakes_are_one_line_and_exit_with_two(run, args, message):
    result = run(*args)
    assert result.exit_code == 2
    assert message in result.output and "Traceback" not in result.output


def test_what_makes_no_calculator_is_one_line_and_exits_with_two(run, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from ase.calculators.emt import EMT\n"
        "class Bad(EMT):\n"
        "    def __init__(self):\n"
        "        raise FileNotFoundError('weights.pt')\n"
        "def five():\n"
        "    return 5\n"
    )
    for name, message in (
        ("Bad", "Bad made no calculator: FileNotFoundError: weights.pt"),
        ("five", "gave 5"),
    ):
        result = run(f"{path}:{name}")
        assert result.exit_code == 2 and message in result.output and result.output.count("\n") == 1
    assert "needed_argument" in run(f"{path}:five", "--kwargs", '{"needed_argument": 1}').output


def test_targets_are_classes_functions_and_objects():
    assert factory("ase.calculators.emt:EMT") is EMT
    bound = factory("ase.calculators.emt:EMT", '{"asap_cutoff": true}')
    assert bound().parameters["asap_cutoff"] is True
    assert factory("ase.calculators.calculator:Calculator.get_property")  # attributes of attributes


def test_an_object_takes_no_arguments(tmp_path):
    path = tmp_path / "object.py"
    path.write_text("from ase.calculators.emt import EMT\ncalc = EMT()\n")
    assert isinstance(factory(f"{path}:calc"), EMT)
    with pytest.raises(InputError, match="no effect"):
        factory(f"{path}:calc", '{"a": 1}')
