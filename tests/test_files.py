"""Reading files: every kind, folders, globs, and bad files among good ones."""

import gzip
import json
import warnings
from pathlib import Path

import ase
import pytest
from ase.build import bulk, molecule
from ase.io import write
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from crystalml.convert import read_structures
from crystalml.errors import FileReadError
from crystalml.files import expand, stem
from crystalml.replacing import replacing

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
VASP4 = "no names\n1.0\n4 0 0\n0 4 0\n0 0 4\n1 1\nDirect\n0 0 0\n.5 .5 .5\n"

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    "name", ["a.cif", "A.CIF", "POSCAR", "CONTCAR_3", "a.vasp", "a.json", "a.extxyz", "a.xyz"]
)
def test_every_kind(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if "xyz" in name:
        write(file, SALT.to_ase_atoms(), format="extxyz")
    else:
        file.write_text(
            SALT.to(fmt={"cif": "cif", "CIF": "cif", "json": "json"}.get(name[-4:].strip("."), "poscar"))
        )
    ((found_name, found),), failures = read_structures(file)
    assert found_name == str(file)
    assert not failures
    assert StructureMatcher(primitive_cell=False).fit(found, SALT)
    assert len(found) == len(SALT)


@pytest.mark.parametrize(
    "name", ["a.cif", "POSCAR", "a.poscar", "run.extxyz", "run.traj", "run.db", "run.json"]
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_the_field_keeps_crystals_in_plain_or_gzipped(tmp_path: Path, name: str, packed: bool) -> None:
    file = tmp_path / name
    if name.startswith("run"):
        write(file, [SALT.to_ase_atoms(), SALT.to_ase_atoms()])
    else:
        SALT.to(str(file), fmt="cif" if name == "a.cif" else "poscar")
    if packed:
        file = tmp_path / f"{name}.gz"
        file.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        (tmp_path / name).unlink()
    found = read_structures(tmp_path)
    assert not found.failures and len(found.structures) == (2 if name.startswith("run") else 1)
    assert all(Path(n.partition("@")[0]) == file for n, _ in found.structures)
    assert all(StructureMatcher(primitive_cell=False).fit(s, SALT) for _, s in found.structures)
    assert stem(file) == name.partition(".")[0]


def test_of_a_run_of_vasp_the_end_is_read() -> None:
    file = Path(ase.__file__).parent / "test/testdata/vasp/vasprun_pstress.xml"
    if not file.is_file():
        pytest.skip("ASE is installed without its test data")
    ((_, found),) = read_structures(file).structures
    assert len(found) == 2 and abs(found.volume - ase.io.read(file).get_volume()) < 1e-6


def test_frames_are_numbered(tmp_path: Path) -> None:
    write(tmp_path / "run.extxyz", [bulk("Cu"), bulk("W"), bulk("Si")])
    found = read_structures(str(tmp_path / "run.extxyz")).structures
    assert [name.rpartition("@")[2] for name, _ in found] == ["0", "1", "2"]
    assert [s.reduced_formula for _, s in found] == ["Cu", "W", "Si"]


def test_a_list_in_json(tmp_path: Path) -> None:
    (tmp_path / "many.json").write_text(json.dumps([SALT.as_dict(), SALT.as_dict()]))
    assert len(read_structures(tmp_path / "many.json").structures) == 2


def test_folder_glob_and_list(tmp_path: Path) -> None:
    for k in range(3):
        SALT.to(str(tmp_path / f"s{k}.cif"))
    (tmp_path / "notes.txt").write_text("not a crystal")
    folder = read_structures(tmp_path).structures
    assert [Path(name).name for name, _ in folder] == ["s0.cif", "s1.cif", "s2.cif"]
    assert len(read_structures(str(tmp_path / "s[01].cif")).structures) == 2
    assert len(read_structures([tmp_path / "s0.cif", str(tmp_path / "s*.cif")]).structures) == 4


def test_in_a_folder_journals_and_settings_are_no_crystals_and_what_is_ignored_is_told(
    tmp_path: Path,
) -> None:
    SALT.to(str(tmp_path / "a.cif"))
    SALT.to(str(tmp_path / "b.json"))
    (tmp_path / "c.jsonl").write_text(json.dumps(SALT.as_dict()) + "\n")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "settings.json").write_text('{"model": "m"}')
    (tmp_path / "results.jsonl").write_text('{"name": "a.cif", "structure": "a.cif"}\n')
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "notes.txt").write_text("not a crystal")
    (tmp_path / ".hidden").write_text("")
    with pytest.warns(
        UserWarning, match=r"4 files of other kinds ignored: list.json, notes.txt, results.jsonl, "
    ):
        files = expand(tmp_path)
    assert [file.name for file in files] == ["a.cif", "b.json", "broken.json", "c.jsonl"]
    assert [Path(name).name for name, _ in read_structures(tmp_path, on_error="skip").failures] == [
        "broken.json"
    ]
    with pytest.raises(FileReadError, match="lattice"):
        read_structures(tmp_path / "settings.json")  # by its name it is asked for


BROKEN = {
    "empty.cif": ("", "empty"),
    "junk.cif": ("hello\nworld\n", "no structures"),
    "cut.cif": ("data_x\n_cell_length_a 5\nloop_\n", r"cannot be read as CIF \(ZeroDivisionError: "),
    "cut.cif.gz": ("data_x", r"cannot be read as CIF \(BadGzipFile: "),
    "empty.xyz": ("", "empty"),
    "junk.xyz": ("hello\nworld\n", "xyz header"),
    "short.extxyz": ('2\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3\nNa 0 0 0\n', ""),
    "POSCAR_empty": ("  \n", ""),
    "POSCAR_4": (VASP4, "name its elements"),
    "junk.json": ("{", ""),
    "other.json": ('{"a": 1}', r"cannot be read as JSON of pymatgen or ASE \(KeyError: 'lattice'\)"),
    "none.json": ("[]", "no crystal"),
    "notes.txt": ("hello", r"unknown kind.*\.cif"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_say_what_is_wrong(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(FileReadError, match=rf"{name}: .*{message}"):
        read_structures(tmp_path / name)


def test_bytes_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "noise.cif").write_bytes(bytes(range(256)))
    (tmp_path / "noise.json").write_bytes(bytes(range(256)))
    _, failures = read_structures(tmp_path, on_error="skip")
    assert len(failures) == 2


def test_a_molecule_is_not_a_crystal(tmp_path: Path) -> None:
    write(tmp_path / "water.xyz", molecule("H2O"))
    with pytest.raises(FileReadError, match=r"water.xyz: pbc"):
        read_structures(tmp_path / "water.xyz")


@pytest.mark.parametrize(
    ("path", "message"), [("missing.cif", "no such file"), ("*.cif", "matches no file"), ("", "no CIF")]
)
def test_nothing_there(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(FileReadError, match=message):
        read_structures(tmp_path / path)
    structures, ((name, error),) = read_structures(tmp_path / path, on_error="skip")
    assert structures == []
    assert name == str(tmp_path / path)
    assert isinstance(error, FileReadError)


def test_bad_files_among_good_ones_are_reported_and_the_others_go_on(tmp_path: Path) -> None:
    for name in ("a.cif", "z.cif"):
        SALT.to(str(tmp_path / name))
    (tmp_path / "m.cif").write_text("data_broken\n_cell_length_a 4\n")
    structures, failures = read_structures([tmp_path, tmp_path / "gone.cif"], on_error="skip")
    assert [Path(name).name for name, _ in structures] == ["a.cif", "z.cif"]
    assert [Path(name).name for name, _ in failures] == ["m.cif", "gone.cif"]
    with pytest.raises(FileReadError, match=r"m\.cif"):
        read_structures(tmp_path)


@pytest.mark.parametrize("name", ["many.jsonl", "many.cif.zip"])
def test_what_generate_writes_is_read(tmp_path: Path, name: str) -> None:
    from crystalml.write import write_structures

    write_structures([SALT, SALT.get_primitive_structure()], tmp_path / name)
    found = [s for _, s in read_structures(tmp_path / name).structures]
    assert [s.reduced_formula for s in found] == ["NaCl", "NaCl"]
    assert all(StructureMatcher().fit(s, SALT) for s in found)


def test_thirds_of_a_cif_are_no_news_but_what_is_wrong_is(tmp_path: Path) -> None:
    file, hexagon = (
        tmp_path / "a.cif",
        Structure(Lattice.hexagonal(3.2, 5.2), ["Mg", "Mg"], [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]),
    )
    text = hexagon.to(fmt="cif").replace("0.33333333", "0.3333").replace("0.66666667", "0.6667")
    file.write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ((_, found),) = read_structures(file).structures
    assert abs(found.frac_coords[0, 0] - 1 / 3) < 1e-12
    file.write_text(text.replace("sum   Mg2", "sum   'Mg2 Na1'"))
    with pytest.warns(UserWarning, match="Missing elements Na"):
        read_structures(file)


def test_a_bad_frame_does_not_take_the_others_of_its_file_along(tmp_path: Path) -> None:
    frames = [bulk("Cu"), bulk("Si"), bulk("Al")]
    frames[1].pbc = False
    write(tmp_path / "a.extxyz", frames)
    structures, failures = read_structures(tmp_path / "a.extxyz", on_error="skip")
    assert [name[-2:] for name, _ in structures] == ["@0", "@2"]
    assert [name[-2:] for name, _ in failures] == ["@1"] and "pbc" in str(failures[0][1])
    with pytest.raises(FileReadError, match=r"a\.extxyz@1: pbc"):
        read_structures(tmp_path / "a.extxyz")


def test_what_a_killed_run_left_half_written_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.cif").write_text("data_a")
    writing = replacing(tmp_path / "b.cif")
    writing.__enter__().write_text("data_")  # and never left
    assert expand(tmp_path) == [tmp_path / "a.cif"]
