"""Crystal files: which files a path means, and what the parsers of pymatgen and ASE make of each."""

from __future__ import annotations

import glob
import gzip
import json
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from crystalml.errors import CrystalMLError, FileReadError, InputError

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure
    from pymatgen.io.cif import CifParser

KINDS = (
    "CIF (.cif, .cif.zip), POSCAR / CONTCAR (.vasp, .poscar), vasprun.xml, extended XYZ (.extxyz, .xyz), "
    "ASE (.traj, .db, .json), pymatgen JSON (.json, .jsonl) or gzipped (.gz)"
)
_ROUNDED = r"Issues encountered while parsing CIF: \d+ fractional coordinates rounded to ideal values[^\n]*$"


class _Kind(NamedTuple):
    name: str
    parser: Callable[[Path], list[Structure] | list[Atoms]]


def expand(path: str | Path) -> list[Path]:
    """The files a path means: itself, a folder's files of the readable kinds, or the matches of a glob.

    JSON that holds no crystals, such as the journals and settings that this library writes beside its
    results, is of another kind in a folder; a warning says how many of those were passed over.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        # what a killed run left half written (`replacing`) is no input
        inside = sorted(f for f in file.iterdir() if f.is_file() and ".partial" not in f.suffixes)
        files = [f for f in inside if _kind(f) and not _other_json(f)]
        if not files:
            raise FileReadError(f"{path}: there is no {KINDS} file in this folder")
        others = [f.name for f in inside if f not in set(files) and not f.name.startswith(".")]
        if others:
            names = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            plural = "s" * (len(others) > 1)
            warnings.warn(f"{path}: {len(others)} file{plural} of other kinds ignored: {names}", stacklevel=2)
        return files
    if not file.exists() and glob.has_magic(str(file)):
        files = sorted(Path(f) for f in glob.glob(str(file), recursive=True) if Path(f).is_file())
        if not files:
            raise FileReadError(f"{path}: the pattern matches no file")
        return files
    return [file]


def parse(path: Path) -> list[Structure] | list[Atoms]:
    """The crystals of one file, at least one, as its parser gives them; else a FileReadError says why."""
    kind = _kind(path)
    if not path.is_file():
        raise FileReadError(f"{path}: no such file")
    if kind is None:
        raise FileReadError(f"{path}: unknown kind of file; {KINDS} can be read")
    if path.stat().st_size == 0:
        raise FileReadError(f"{path}: the file is empty")
    try:
        found = _unpacked(path, kind) if path.suffix.lower() == ".gz" else kind.parser(path)
    except CrystalMLError as error:
        raise FileReadError(f"{path}: {error}") from error
    except Exception as error:  # a broken file may break its parser in any way
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
        raise FileReadError(f"{path}: cannot be read as {kind.name} ({reason})") from error
    if not found:
        raise FileReadError(f"{path}: there is no crystal in it")
    return found


def stem(path: Path) -> str:
    """The name without what says the kind: "a" of a.cif and a.cif.gz, "POSCAR" of POSCAR."""
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def _other_json(file: Path) -> bool:
    """Whether a file is sound JSON, but no crystals; of .jsonl the first line tells.

    A broken one is for its parser, which says what is wrong.
    """
    if file.suffix.lower() not in (".json", ".jsonl"):
        return False
    try:
        with file.open(encoding="utf-8") as lines:
            content = json.loads(lines.readline() if file.suffix.lower() == ".jsonl" else lines.read())
    except (OSError, ValueError):
        return False
    first = content[0] if isinstance(content, list) and content else content
    if not isinstance(first, dict):
        return True
    return not ({"lattice", "sites"} & first.keys() or first.keys() >= _ASE_KEYS)


def _unpacked(path: Path, kind: _Kind) -> list[Structure] | list[Atoms]:
    """The crystals of a gzipped file: ASE's parsers want a real one, of its own name."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, path.stem)
        with gzip.open(path) as packed, plain.open("wb") as target:
            shutil.copyfileobj(packed, target)
        return kind.parser(plain)


def _cif(path: Path) -> list[Structure]:
    from pymatgen.io.cif import CifParser

    return _crystals(CifParser(path))


def _crystals(cif: CifParser) -> list[Structure]:
    with warnings.catch_warnings():  # 0.3333 means a third: for a folder of files that is a page of warnings
        warnings.filterwarnings("ignore", message=_ROUNDED)
        return cif.parse_structures(primitive=False)


def _poscar(path: Path) -> list[Structure]:
    from pymatgen.io.vasp import Poscar

    poscar = Poscar.from_file(path, check_for_potcar=False)
    if not poscar.true_names:  # pymatgen would go on with H, He, Li, ...
        raise InputError(
            "the file does not name its elements; add the line of symbols above the counts (VASP 5)"
        )
    return [poscar.structure]


def _vasprun(path: Path) -> list[Structure]:
    """The final structure of a run of VASP."""
    from pymatgen.io.vasp import Vasprun

    return [Vasprun(path, parse_dos=False, parse_eigen=False, parse_potcar_file=False).final_structure]


def _ase(format: str) -> Callable[[Path], list[Atoms]]:
    """A parser of ASE's, for all frames."""

    def parser(path: Path) -> list[Atoms]:
        import ase.io

        return list(ase.io.iread(path, index=":", format=format))

    return parser


def _json(path: Path) -> list[Structure] | list[Atoms]:
    from pymatgen.core import Structure

    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, dict) and content.keys() >= _ASE_KEYS:
        return _ase("json")(path)
    return [Structure.from_dict(entry) for entry in (content if isinstance(content, list) else [content])]


def _jsonl(path: Path) -> list[Structure]:
    from pymatgen.core import Structure

    lines = path.read_text(encoding="utf-8").splitlines()
    return [Structure.from_dict(json.loads(line)) for line in lines if line.strip()]


def _zip(path: Path) -> list[Structure]:
    """The CIFs of an archive, by name."""
    from pymatgen.io.cif import CifParser

    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith(".cif"))
        texts = [archive.read(name).decode("utf-8") for name in names]
    return [s for text in texts for s in _crystals(CifParser.from_str(text))]


_ASE_KEYS = {"ids", "nextid"}  # of a database of ASE's in JSON
_POSCAR = _Kind("POSCAR", _poscar)
_KINDS = {
    ".cif": _Kind("CIF", _cif),
    ".zip": _Kind("a zip of CIFs", _zip),
    ".vasp": _POSCAR,
    ".poscar": _POSCAR,
    ".xyz": _Kind("extended XYZ", _ase("extxyz")),
    ".extxyz": _Kind("extended XYZ", _ase("extxyz")),
    ".traj": _Kind("a trajectory of ASE", _ase("traj")),
    ".db": _Kind("a database of ASE", _ase("db")),
    ".json": _Kind("JSON of pymatgen or ASE", _json),
    ".jsonl": _Kind("lines of pymatgen JSON", _jsonl),
}


def _kind(path: Path) -> _Kind | None:
    """What a file's name says."""
    name = path.name.lower().removesuffix(".gz")
    if name.startswith("vasprun") and name.endswith(".xml"):
        return _Kind("vasprun.xml", _vasprun)
    if (ending := Path(name).suffix) in _KINDS:
        return _KINDS[ending]
    return _POSCAR if name.startswith(("poscar", "contcar")) else None
