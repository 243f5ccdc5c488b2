"""Crystal files: which files a path means, and what the parsers of pymatgen and ASE make of each."""

from __future__ import annotations

import glob
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from crystalml.errors import FileReadError, InputError

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure
    from pymatgen.io.cif import CifParser

KINDS = (
    "CIF (.cif, .cif.zip), POSCAR / CONTCAR (.vasp), extended XYZ (.extxyz, .xyz) "
    "or pymatgen JSON (.json, .jsonl)"
)
_ROUNDED = r"Issues encountered while parsing CIF: \d+ fractional coordinates rounded to ideal values[^\n]*$"


def expand(path: str | Path) -> list[Path]:
    """The files a path means: itself, a folder's files of the readable kinds, or the matches of a glob."""
    file = Path(path).expanduser()
    if file.is_dir():
        files = sorted(f for f in file.iterdir() if f.is_file() and _parser(f))
        if not files:
            raise FileReadError(f"{path}: there is no {KINDS} file in this folder")
        return files
    if not file.exists() and glob.has_magic(str(file)):
        files = sorted(Path(f) for f in glob.glob(str(file), recursive=True) if Path(f).is_file())
        if not files:
            raise FileReadError(f"{path}: the pattern matches no file")
        return files
    return [file]


def parse(path: Path) -> list[Structure] | list[Atoms]:
    """The crystals of one file, at least one, as its parser gives them; else a FileReadError says why."""
    parser = _parser(path)
    if not path.is_file():
        raise FileReadError(f"{path}: no such file")
    if parser is None:
        raise FileReadError(f"{path}: unknown kind of file; {KINDS} can be read")
    if path.stat().st_size == 0:
        raise FileReadError(f"{path}: the file is empty")
    try:
        found = parser(path)
    except Exception as error:  # a broken file may break its parser in any way
        raise FileReadError(f"{path}: {str(error) or type(error).__name__}") from error
    if not found:
        raise FileReadError(f"{path}: there is no crystal in it")
    return found


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


def _xyz(path: Path) -> list[Atoms]:
    import ase.io

    return list(ase.io.iread(path, index=":", format="extxyz"))


def _json(path: Path) -> list[Structure]:
    from pymatgen.core import Structure

    content = json.loads(path.read_text(encoding="utf-8"))
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


_PARSERS: dict[str, Callable[[Path], list[Structure] | list[Atoms]]] = {
    ".cif": _cif,
    ".vasp": _poscar,
    ".xyz": _xyz,
    ".extxyz": _xyz,
    ".json": _json,
    ".jsonl": _jsonl,
    ".zip": _zip,
}


def _parser(path: Path) -> Callable[[Path], list[Structure] | list[Atoms]] | None:
    if path.suffix.lower() in _PARSERS:
        return _PARSERS[path.suffix.lower()]
    return _poscar if path.name.upper().startswith(("POSCAR", "CONTCAR")) else None
