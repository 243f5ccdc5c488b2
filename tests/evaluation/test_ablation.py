"""Variants side by side: the same targets and numbers for all, every shot counted."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from pymatgen.core import Structure

from crystalml.benchmarks import csp
from crystalml.benchmarks.store import Sample
from crystalml.errors import InputError
from crystalml.evaluation import ablation
from crystalml.evaluation.ablation import Variant
from crystalml.metrics.stability import HullTable
from crystalml.models.heads import EnergyScale

HULL = HullTable({"NaCl": -100.0})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dao-g", Variant("dao-g", "dao-g")),
        ("I=a.safetensors", Variant("I", "a.safetensors")),
        ("+ guidance=a.safetensors@2.5", Variant("+ guidance", "a.safetensors", 2.5)),
        ("hub=hf://me/model@main", Variant("hub", "hf://me/model@main")),
        ("hub=hf://me/model@main@3", Variant("hub", "hf://me/model@main", 3.0)),
    ],
)
def test_rows_are_read(text, expected):
    assert Variant.parse(text) == expected


@pytest.mark.parametrize("text", ["", "=a", "a=", "a=m@-1"])
def test_bad_rows_are_refused(text):
    with pytest.raises(InputError, match="no variant"):
        Variant.parse(text)


@pytest.fixture
def table(tmp_path, salts):
    pa = pytest.importorskip("pyarrow", reason="reading parquet needs pyarrow")
    import pyarrow.parquet as parquet

    rows = [_row(f"salt-{i}", salt) for i, salt in enumerate(salts)]
    other = Structure([[3.4, 0, 0], [0, 3.4, 0], [0, 0, 3.4]], ["Na", "Cl"], [[0] * 3, [0.5] * 3])
    rows.append(_row("salt-5", other))  # another NaCl: a polymorph
    path = tmp_path / "salts.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def _row(name: str, structure: Structure) -> dict[str, object]:
    return {
        "material_id": name,
        "numbers": list(structure.atomic_numbers),
        "frac_coords": structure.frac_coords.ravel().tolist(),
        "lattice": structure.lattice.matrix.ravel().tolist(),
    }


@pytest.fixture
def run(monkeypatch, table, salts, tiny_model, tiny_potential, tmp_path):
    """A first shot that is rock salt for all, a second that is no crystal."""
    asked = []

    def draws(targets, missing, job, seed, budget, store, progress):
        asked.append((job.settings["guidance"], list(missing)))
        salt = salts[0]
        good = salt.lattice.matrix.ravel().tolist(), salt.frac_coords.ravel().tolist()
        samples = [
            Sample(targets.ids[i], shot, 0.5, *(good if shot == 0 else ([float("nan")] * 9, good[1])))
            for i, shot in missing
        ]
        store.append(samples)
        return samples

    monkeypatch.setattr(csp, "_draw", draws)
    model, potential = tiny_model(), tiny_potential()
    potential.config = replace(
        potential.config, energy=EnergyScale(-50.0, 1.0)
    )  # eV/atom, below all elements

    def go(*variants, **settings):
        options = {"shots": [1, 2], "out": tmp_path / "out", "hull": HULL, "energy_model": potential}
        return ablation.run(
            table, [Variant(name, model, s) for name, s in variants], device="cpu", progress=False,
            guide=tiny_model(), **{**options, **settings},
        )  # fmt: skip

    go.asked = asked
    return go


def test_figures_of_samples_that_are_known(run, tmp_path):
    result = run(("plain", 0.0), ("guided", 2.0))
    assert [row["guidance"] for row in result["rows"]] == [0.0, 2.0]
    assert "energy_weights" in result["rows"][1] and "energy_weights" not in result["rows"][0]
    figures = result["rows"][0]["figures"]
    # matching scales the volume: rock salt stands for each salt, but not for the CsCl form of NaCl
    assert figures["match_rate_1"]["value"] == figures["match_rate_2"]["value"] == pytest.approx(5 / 6)
    assert figures["polymorphs"]["value"] == 0.5 and figures["polymorphs"]["count"] == 2
    assert figures["valid_structure"]["value"] == pytest.approx(6 / 12)
    assert figures["stable_dao"]["value"] == pytest.approx(4 / 12)  # NaCl lies far above its hull
    assert result["rows"][0]["structures_per_second"] == pytest.approx(2)
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == json.loads(json.dumps(result))


def test_a_stopped_run_goes_on_with_what_is_missing(run):
    run(("plain", 0.0), shots=[1])
    run(("plain", 0.0), ("guided", 2.0))
    assert [(guidance, len(missing)) for guidance, missing in run.asked] == [(0.0, 6), (0.0, 6), (2.0, 12)]
    assert {shot for _, shot in run.asked[1][1]} == {1}
    with pytest.raises(InputError, match="energy_weights"):
        run(("plain", 1.0))


def test_bad_requests(run):
    with pytest.raises(InputError, match="name of its own"):
        run(("a", 0.0), ("a", 1.0))
    with pytest.raises(InputError, match="at least 1"):
        run(("a", 0.0), shots=[0])
    assert np.all([guidance == 0 for guidance, _ in run.asked])
