"""Structures to files: extxyz, CIF (one file or a zip of many), JSON lines."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ase import Atoms
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.cif import CifWriter
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from crystalml.errors import InputError
from crystalml.replacing import replacing

FORMATS = (".extxyz", ".cif.zip", ".cif", ".jsonl")
SYMPREC = 0.1  # Angstrom; the Materials Project's choice, and right for unrelaxed samples


def write_structures(
    structures: Structure | Atoms | Iterable[Structure | Atoms],
    path: str | os.PathLike[str],
    symprec: float | None = SYMPREC,
) -> list[str]:
    """Write structures to .extxyz, .cif, .cif.zip or .jsonl, by the ending of path; all or nothing.

    The file appears under its name only when complete. CIFs carry the space group found at symprec; where
    none can be written faithfully the CIF is P1 and says so. symprec=None keeps cell and atoms as they stand.
    Provenance (`structure.properties`, or the `info` of Atoms) goes into every frame of .extxyz and .jsonl,
    and into comments of a CIF. Returns one note for each P1 fallback. Raises InputError for another ending,
    for structures that are not ordered, and for slabs and molecules (Atoms not periodic in three directions)
    unless the ending is .extxyz.
    """
    target = Path(path)
    ending = check_format(target)
    given = [structures] if isinstance(structures, Structure | Atoms) else list(structures)
    disordered = [s.formula for s in given if isinstance(s, Structure) and not s.is_ordered]
    if disordered:
        raise InputError(f"cannot write disordered structures: {', '.join(disordered)}. Order them first.")
    notes: list[str] = []
    items = [] if ending == ".extxyz" else [_as_structure(item, target) for item in given]
    writers: dict[str, Callable[[Path], None]] = {
        ".extxyz": lambda file: _extxyz(given, file),
        ".cif": lambda file: _cif(items, file, symprec, notes),
        ".cif.zip": lambda file: _cif_zip(items, file, symprec, notes),
        ".jsonl": lambda file: _jsonl(items, file),
    }
    with replacing(target) as file:
        writers[ending](file)
    return notes


def _as_structure(item: Structure | Atoms, target: Path) -> Structure:
    check_fits(item, target)
    return item if isinstance(item, Structure) else AseAtomsAdaptor.get_structure(item)


def check_fits(item: Structure | Atoms, path: str | os.PathLike[str]) -> None:
    """Raises InputError where path's format cannot hold the item: Atoms not periodic in three directions."""
    if isinstance(item, Structure) or check_format(path) == ".extxyz":
        return
    if not (item.pbc.all() and item.cell.rank == 3):
        raise InputError(f"{path}: only .extxyz can hold atoms with pbc {item.pbc.tolist()}; end it so.")


def check_format(path: str | os.PathLike[str]) -> str:
    """The ending of path that says how to write. Raises InputError, so call it before long work.

    Not only for another ending, but also where there can be no such file.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{target} is a folder; name a file.")
    if file := next((parent for parent in target.parents if parent.is_file()), None):
        raise InputError(f"{target}: {file} is a file, not a folder; choose another place.")
    name = target.name.lower()
    for ending in FORMATS:
        if name.endswith(ending):
            return ending
    raise InputError(f"cannot tell the format of {str(path)!r}: end it in {', '.join(FORMATS)}.")


def to_cif(
    structure: Structure, symprec: float | None = SYMPREC, name: str | None = None
) -> tuple[str, str | None]:
    """(CIF text, note): symmetrised at symprec, or P1 with a note where that gives another crystal.

    symprec=None is P1 with the atoms and the cell as they stand.

    pymatgen symmetrises by averaging; the result is accepted only if it reads back with as many atoms per
    volume of the same composition.
    """
    title = name or structure.reduced_formula
    note = None
    try:
        if symprec is None:
            text, head = str(CifWriter(structure)), "# cell and atoms as they stand, in P1"
        else:
            text, head = _symmetrized_cif(structure, symprec)
    except Exception as error:  # spglib and the CIF writer raise many kinds; P1 is always right
        text = str(CifWriter(structure))
        note = f"{title}: written in P1 ({type(error).__name__}: {error})"
        head = "# P1: no space group could be written faithfully"
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    lines = [f"data_{title}" if line.startswith("data_") else line for line in lines]
    made = [f"# {key} = {_plain(value)}" for key, value in (structure.properties or {}).items()]
    return "\n".join(["# generated by crystalml with pymatgen", head, *made, *lines]) + "\n", note


def _symmetrized_cif(structure: Structure, symprec: float) -> tuple[str, str]:
    symbol = SpacegroupAnalyzer(structure, symprec=symprec).get_space_group_symbol()
    text = str(CifWriter(structure, symprec=symprec))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reader tells us that it rounds 0.3333 to 1/3
        back = Structure.from_str(text, fmt="cif")
    same = back.reduced_formula == structure.reduced_formula
    ratio = back.volume / len(back) / (structure.volume / len(structure))
    if not same or abs(ratio - 1) > 0.02:
        raise ValueError("the symmetrised cell is another crystal")
    return text, f"# space group {symbol} found at symprec = {symprec} A"


def _plain(value: object) -> object:
    """What survives in a comment, an extxyz header and JSON alike."""
    return value if isinstance(value, str | int | float | bool) else json.dumps(value, default=str)


def _titles(structures: Sequence[Structure]) -> list[str]:
    width = max(4, len(str(len(structures))))
    return [f"{i:0{width}d}_{s.reduced_formula}" for i, s in enumerate(structures)]


def _extxyz(structures: Sequence[Structure | Atoms], file: Path) -> None:
    from ase.io import write

    frames = []
    for structure in structures:
        if isinstance(structure, Atoms):
            atoms, properties = structure.copy(), structure.info
        else:
            atoms = AseAtomsAdaptor.get_atoms(structure, msonable=False)
            properties = structure.properties or {}
        atoms.info = {key: _plain(value) for key, value in properties.items() if value is not None}
        atoms.calc = None
        frames.append(atoms)
    if frames:  # ASE refuses to write no frames; an empty file is a true answer
        write(file, frames, format="extxyz")


def _cif(structures: list[Structure], file: Path, symprec: float | None, notes: list[str]) -> None:
    blocks = []
    single = len(structures) == 1
    for title, structure in zip(_titles(structures), structures, strict=True):
        # Readers keep blocks by name: equal names would overwrite each other.
        text, note = to_cif(structure, symprec, None if single else title)
        blocks.append(text)
        notes += [note] if note else []
    file.write_text("\n".join(blocks))


def _cif_zip(structures: list[Structure], file: Path, symprec: float | None, notes: list[str]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for title, structure in zip(_titles(structures), structures, strict=True):
            text, note = to_cif(structure, symprec, title)
            archive.writestr(f"{title}.cif", text)
            notes += [note] if note else []


def _jsonl(structures: list[Structure], file: Path) -> None:
    with file.open("w") as out:
        for structure in structures:
            out.write(json.dumps(structure.as_dict(), default=str) + "\n")
