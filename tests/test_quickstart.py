"""The quick start: with stand-in weights for its parts, with the shipped ones as a newcomer runs it."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Structure

from crystalml import quickstart as module
from crystalml.generate import StructureGenerator
from crystalml.quickstart import best_sample, kagome_reference, quickstart, rattle
from crystalml.relax import spacegroup
from crystalml.weights import list_models

FILES = {"experiment.cif", "relaxed.cif", "samples.cif.zip", "samples.extxyz", "quickstart.png"}
SHIPPED = {"dao-g", "dao-p"} <= {info.name for info in list_models()}


def test_the_reference_is_the_kagome_structure():
    reference = kagome_reference()
    assert reference.composition.formula == "Cs1 V3 Sb5"
    assert spacegroup(reference, symprec=1e-4) == "P6/mmm (191)"
    i, j, _, distance = reference.get_neighbor_list(2.76)
    vanadium = [n for n, site in enumerate(reference) if site.specie.symbol == "V"]
    bonds = [d for a, b, d in zip(i, j, distance, strict=True) if a in vanadium and b in vanadium]
    assert len(bonds) == 3 * 4 and np.allclose(bonds, 5.4949 / 2)  # four neighbours each: the kagome net


def test_rattling_is_seeded_and_moderate():
    reference = kagome_reference()
    assert rattle(reference, 1) == rattle(reference, 1) != rattle(reference, 2)
    assert rattle(reference, 1).volume == pytest.approx(reference.volume, rel=0.2)
    assert spacegroup(rattle(reference, 1)) == "P1 (1)"


@pytest.fixture
def samples(monkeypatch) -> list[Structure]:
    """Two near-kagome samples and one that is not; an untrained network draws nothing to look at."""
    reference = kagome_reference()
    other = reference.copy()
    other.translate_sites([1, 2, 3], [0.3, 0.1, 0.4])
    found = [other, rattle(reference, 5, 0.05, 0.0), rattle(reference, 6, 0.15, 0.0)]
    monkeypatch.setattr(StructureGenerator, "sample", lambda self, *args, **kwargs: found)
    return found


def test_the_tour_prints_a_table_and_writes_its_files(tmp_path, tiny_model, samples, capsys):
    out = tmp_path / "tour"
    model = tiny_model()
    result = quickstart(out, n=3, device="cpu", energy_model=model, generator=model, relax_steps=3)
    assert {path.name for path in out.iterdir()} == FILES == {path.name for path in result.files}
    text = capsys.readouterr().out
    assert "P6/mmm" in text and "CsV3Sb5" in text and "replacing" not in text and "Ortiz" in text
    names = [
        "experiment",
        "rattled",
        "relaxed",
        *(f"{k} {i}" for k in ("sample", "prototype") for i in range(3)),
    ]
    assert [row.name for row in result.rows] == names
    assert result.rows[0].rms == pytest.approx(0, abs=1e-6)
    best = best_sample(result.rows)
    assert best is not None and best.name == "sample 1"
    assert (out / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    assert Structure.from_file(out / "experiment.cif").reduced_formula == "CsV3Sb5"


def test_nothing_is_overwritten_without_a_word(tmp_path, tiny_model, samples, capsys):
    (tmp_path / "experiment.cif").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    quickstart(tmp_path, device="cpu", energy_model=tiny_model(), generator=tiny_model(), relax_steps=0)
    text = capsys.readouterr().out
    assert "replacing experiment.cif" in text and "relaxed.cif in" not in text
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_tour_without_samples_still_ends_well(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(StructureGenerator, "sample", lambda self, *args, **kwargs: [])
    result = quickstart(
        tmp_path, n=0, device="cpu", energy_model=tiny_model(), generator=tiny_model(), relax_steps=1
    )
    assert len(result.rows) == 3 and best_sample(result.rows) is None


@pytest.mark.skipif(not SHIPPED, reason="no weights are registered yet")
def test_the_tour_with_shipped_weights(tmp_path, capsys):
    result = quickstart(tmp_path, device="cpu")
    samples = [row for row in result.rows if row.name.startswith("sample")]
    assert len(samples) >= 6, "most draws must pass the guard"
    assert all(row.structure.composition.formula == "Cs1 V3 Sb5" for row in samples)
    energies = {row.name: row.energy_per_atom for row in result.rows}
    assert energies["experiment"] < energies["rattled"] and energies["relaxed"] < energies["rattled"]
    assert result.seconds < 60
    assert module.SOURCE in capsys.readouterr().out
