"""Files come out complete or not at all, and read back as the same crystals."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.io import read
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifParser

from crystalml import write
from crystalml.convert import read_structures
from crystalml.errors import InputError
from crystalml.write import check_format, to_cif, write_structures


@pytest.fixture
def salts() -> list[Structure]:
    found = []
    for i, (cation, a) in enumerate([("Na", 3.99), ("K", 4.45), ("Na", 4.05)]):
        cell = Lattice.from_parameters(a, a, a, 60, 60, 60)
        salt = Structure(cell, [cation, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        salt.properties = {"model": "tiny", "seed": i, "guidance": 0.5, "sha256": None}
        found.append(salt)
    return found


@pytest.mark.parametrize("ending", write.FORMATS)
def test_every_format_appears_whole_and_leaves_nothing_behind(tmp_path, salts, ending):
    path = tmp_path / "deep" / f"out{ending}"
    assert write_structures(salts, path) == []
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    write_structures(salts[0], path)
    write_structures([], path)
    assert path.exists()


def test_extxyz_keeps_geometry_and_provenance(tmp_path, salts):
    path = tmp_path / "out.extxyz"
    write_structures(salts, path)
    frames = read(path, ":")
    assert [frame.info["seed"] for frame in frames] == [0, 1, 2] and frames[0].info["model"] == "tiny"
    np.testing.assert_allclose(frames[1].cell[:], salts[1].lattice.matrix, atol=1e-6)
    assert len(read_structures(path).structures) == 3


def test_a_cif_as_it_stands_keeps_cell_and_order(tmp_path, salts):
    salts[0].translate_sites([0, 1], [0.1, 0.2, 0.3])
    notes = write_structures(salts[0], tmp_path / "out.cif", symprec=None)
    back = Structure.from_file(tmp_path / "out.cif")
    assert notes == [] and [site.specie.symbol for site in back] == ["Na", "Cl"]
    np.testing.assert_allclose(back.lattice.abc, salts[0].lattice.abc, atol=1e-6)
    np.testing.assert_allclose(back.frac_coords, salts[0].frac_coords, atol=1e-6)


def test_atoms_are_written_with_their_info_and_slabs_only_where_they_can_be(tmp_path):
    slab = fcc111("Al", (1, 1, 3), vacuum=6.0)
    slab.info["seed"] = 3
    write_structures(slab, tmp_path / "out.extxyz")
    back = read(tmp_path / "out.extxyz")
    assert back.info["seed"] == 3 and back.pbc.tolist() == [True, True, False]
    write_structures(bulk("Cu"), tmp_path / "out.cif")
    assert Structure.from_file(tmp_path / "out.cif").reduced_formula == "Cu"
    with pytest.raises(InputError, match=r"only .extxyz"):
        write_structures(slab, tmp_path / "slab.cif")
    assert not (tmp_path / "slab.cif").exists()


def test_json_lines_restore_the_structures(tmp_path, salts):
    path = tmp_path / "out.jsonl"
    write_structures(salts, path)
    back = [Structure.from_dict(json.loads(line)) for line in path.read_text().splitlines()]
    assert back == salts and back[2].properties["seed"] == 2 and back[0].properties["sha256"] is None


def test_cifs_are_symmetrised_and_carry_provenance(tmp_path, salts):
    path = tmp_path / "out.cif.zip"
    write_structures(salts, path)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["0000_NaCl.cif", "0001_KCl.cif", "0002_NaCl.cif"]
        text = archive.read("0001_KCl.cif").decode()
    assert "Fm-3m" in text and "# seed = 1" in text and "_cell_length_a   6.29" in text
    assert Structure.from_str(text, fmt="cif").reduced_formula == "KCl"


def test_many_structures_in_one_cif_do_not_overwrite_each_other(tmp_path, salts):
    path = tmp_path / "out.cif"
    write_structures(salts, path)
    assert len(CifParser(path).parse_structures(primitive=True)) == 3
    assert len(read_structures(path).structures) == 3


def test_crystals_without_symmetry_are_p1_without_a_fuss(salts):
    cell = Lattice.from_parameters(5, 6, 7, 80, 95, 103)
    triclinic = Structure(cell, ["Na", "Cl", "K"], [[0, 0, 0], [0.41, 0.53, 0.37], [0.22, 0.71, 0.83]])
    text, note = to_cif(triclinic)
    assert note is None and "space group P1 found" in text


def test_when_symmetrising_fails_p1_is_written_and_said(tmp_path, salts, monkeypatch):
    def broken(*args, **kwargs):
        raise TypeError("spglib found nothing")

    monkeypatch.setattr(write, "SpacegroupAnalyzer", broken)
    notes = write_structures(salts[:1], tmp_path / "out.cif.zip")
    assert len(notes) == 1 and "P1" in notes[0] and "spglib found nothing" in notes[0]
    text, _ = to_cif(salts[0])
    assert "# P1" in text and len(Structure.from_str(text, fmt="cif")) == 2


def test_a_symmetrised_cell_that_is_another_crystal_is_not_written(salts, monkeypatch):
    honest = write.CifWriter

    def wrong(structure, symprec=None):
        return honest(structure if symprec is None else structure.copy().scale_lattice(99.0), symprec=symprec)

    monkeypatch.setattr(write, "CifWriter", wrong)
    text, note = to_cif(salts[0])
    assert note is not None and "another crystal" in note
    back = Structure.from_str(text, fmt="cif")
    assert back.volume == pytest.approx(salts[0].volume, rel=1e-5)


def test_a_failure_leaves_the_old_file(tmp_path, salts, monkeypatch):
    path = tmp_path / "out.jsonl"
    path.write_text("precious")

    def broken(structures, file):
        file.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(write, "_jsonl", broken)
    with pytest.raises(OSError, match="disk full"):
        write_structures(salts, path)
    assert path.read_text() == "precious" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["out", "out.xyz", "out.zip", "cif", "out.cif.gz"])
def test_unknown_endings_are_refused_before_any_work(name, salts):
    with pytest.raises(InputError, match="extxyz"):
        check_format(name)
    with pytest.raises(InputError):
        write_structures(salts, name)


def test_places_where_there_can_be_no_file_are_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.cif").mkdir()
    with pytest.raises(InputError, match=r"file is a file, not a folder"):
        check_format(tmp_path / "file" / "deep" / "out.cif")
    with pytest.raises(InputError, match=r"folder\.cif is a folder"):
        check_format(tmp_path / "folder.cif")
    assert check_format(tmp_path / "not" / "there" / "out.cif") == ".cif"


def test_disordered_structures_are_refused(tmp_path):
    alloy = Structure(Lattice.cubic(3), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
    with pytest.raises(InputError, match="disordered"):
        write_structures(alloy, tmp_path / "out.cif")
