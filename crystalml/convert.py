"""The only converter: pymatgen Structures, ASE Atoms and files to CrystalBatch and back, checked at the door.

Kept: elements, positions, cell. Dropped without a word: oxidation states, isotopes, site properties, charges,
magnetic moments, constraints, velocities, calculators. A left-handed cell becomes a right-handed one of the
same crystal: L -> -L, F -> w(-F), so the atoms keep their order and their neighbourhoods.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn

import numpy as np
import torch

from crystalml.composition import parse_composition
from crystalml.crystal import CrystalBatch
from crystalml.elements import MAX_Z, symbol
from crystalml.errors import (
    CellError,
    CrystalMLError,
    DisorderedStructureError,
    EmptyStructureError,
    FileReadError,
    InputError,
    NonFiniteError,
    OverlappingAtomsError,
    TooManyAtomsError,
    UnknownElementError,
    UnsupportedError,
)
from crystalml.files import expand, parse
from crystalml.geometry.box import enclose
from crystalml.geometry.lattice import determinant
from crystalml.geometry.neighbors import min_distances, neighbor_list
from crystalml.geometry.torus import wrap

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import ArrayLike
    from pymatgen.core import IStructure, Structure

__all__ = ["ReadResult", "parse_composition", "read_structures", "to_atoms", "to_batch", "to_structures"]

COINCIDING = 0.01  # Angstrom: two atoms in one place, by a duplicate site or a wrong cell
MAX_LENGTH = 1e4  # Angstrom, of a cell vector: beyond it the input is in other units
MIN_VOLUME = 1e-3  # cubic Angstrom: a hydrogen atom in a metal takes about 2
WHOLE = 1 - 1e-6  # a smaller occupancy is partial
MIN_SKEW = 1e-5  # V / abc of a flat cell: float32 coordinates would lose the atoms


# --- into a batch -----------------------------------------------------------------------------------------
def to_batch(
    structures: Structure | Atoms | CrystalBatch | Iterable[Structure | Atoms | CrystalBatch],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    max_atoms: int | None = None,
    min_distance: float = 0.0,
    known: Collection[int] | None = None,
    bulk: bool = True,
) -> CrystalBatch:
    """One structure or many -> a CrystalBatch with right-handed cells and frac in [0, 1).

    max_atoms: the most atoms a cell may hold. min_distance: in Angstrom, over all images; 0 accepts anything.
    known: the atomic numbers allowed. bulk=False also takes slabs, wires and molecules (Atoms not periodic in
    all directions): they come with the label "pbc" and a roomy box along free ones. Other labels are
    kept only where every item is a CrystalBatch that has them.
    Raises a subclass of InputError (or UnsupportedError) that names the structure, the value and the remedy.
    """
    if not dtype.is_floating_point:
        raise InputError(f"dtype {dtype} cannot hold coordinates; use torch.float32 or torch.float64")
    parts, count = [], 0
    for item in listed(structures):
        parts.append(_read_item(item, count, bulk))
        count += len(parts[-1])
    if not parts:
        raise InputError("no structures given: the sequence is empty")
    batch = CrystalBatch.cat(parts)
    _check_atoms(batch, max_atoms, known)
    _check_cells(batch)
    left = determinant(batch.lattice) < 0
    batch = batch.replace(
        lattice=torch.where(left[:, None, None], -batch.lattice, batch.lattice),
        frac=wrap(torch.where(left[batch.index][:, None], -batch.frac, batch.frac)),
    )
    if min_distance > 0:
        _check_distances(batch, min_distance)
    batch = batch.to(device, dtype)
    return batch.replace(frac=wrap(batch.frac))  # 0.99999999999 is 1.0 in float32


def listed(structures: object) -> list[object]:
    """The structures one by one; Structure and Atoms are themselves iterable (over sites).

    Raises InputError for what is no collection either, a path or a formula among them.
    """
    if isinstance(structures, str | Path):
        raise InputError(
            f"{str(structures)!r} is a path or a formula, not a structure; use read_structures(path)"
        )
    if is_one(structures):
        return [structures]
    if not isinstance(structures, Iterable):
        raise InputError(f"cannot read a crystal from {type(structures).__name__}: {structures!r:.80}")
    return list(structures)


def is_one(item: object) -> bool:
    """Whether it stands for itself: a batch, Atoms, or sites of pymatgen, molecules included."""
    from ase import Atoms

    if isinstance(item, CrystalBatch | Atoms):
        return True
    from pymatgen.core.structure import SiteCollection

    return isinstance(item, SiteCollection)


def _read_item(item: object, k: int, bulk: bool = True) -> CrystalBatch:
    """One input as a float64 batch on the CPU; k is its place, for the error messages."""
    from ase import Atoms

    if isinstance(item, CrystalBatch):
        return item.to("cpu", torch.float64)
    if isinstance(item, Atoms):
        return _read_atoms(item, k, bulk)
    from pymatgen.core import IStructure

    if isinstance(item, IStructure):
        return _read_structure(item, k)
    if is_one(item):
        raise UnsupportedError(
            f"structure {k} is a {type(item).__name__}: only periodic crystals are supported"
        )
    raise InputError(f"structure {k}: cannot read a crystal from {type(item).__name__}: {item!r:.80}")


def _read_structure(structure: IStructure, k: int) -> CrystalBatch:
    from pymatgen.core import DummySpecies

    _require_periodic(structure.lattice.pbc, k)
    # AseAtomsAdaptor makes whole atoms of shares, and keeps what ASE knows about them
    _check_shares(structure.properties, structure.site_properties.get("spacegroup_kinds"), k)
    numbers = []
    for n, site in enumerate(structure):
        if not site.is_ordered:
            _fail(
                DisorderedStructureError,
                k,
                f"site {n} holds {site.species_string}; every site must hold one whole atom. Choose an "
                "ordered approximant, for example with pymatgen's OrderDisorderedStructureTransformation",
            )
        if isinstance(site.specie, DummySpecies):
            _fail(
                UnknownElementError, k, f"site {n} holds the dummy species {site.specie}; name a real element"
            )
        numbers.append(site.specie.Z)
    return _single(numbers, structure.frac_coords, structure.lattice.matrix)


def check_whole(atoms: Atoms, k: int = 0) -> None:
    """Raises DisorderedStructureError where atoms stand for several species or for a part of one.

    ASE keeps the occupancies of a CIF file in `info`, by kind of site, and puts the likeliest species there.
    """
    _check_shares(atoms.info, atoms.arrays.get("spacegroup_kinds"), k)


def _check_shares(info: Mapping[str, object], places: Iterable[object] | None, k: int) -> None:
    """places: of each atom, its kind in info["occupancy"]."""
    kinds = info.get("occupancy")
    if not isinstance(kinds, Mapping):
        return
    seen = None if places is None else [str(place) for place in places]
    for kind, shares in kinds.items():
        if not isinstance(shares, Mapping) or (seen is not None and str(kind) not in seen):
            continue  # something else under this name, or atoms that were deleted
        parts = {
            name: share for name, share in shares.items() if isinstance(share, int | float) and share > 0
        }
        if len(parts) > 1 or sum(parts.values()) < WHOLE:
            where = f"kind {kind}" if seen is None else f"atom {seen.index(str(kind))}"
            _fail(
                DisorderedStructureError,
                k,
                f"by ASE's 'occupancy' {where} is {parts}; every site must hold one whole atom. Choose an "
                "ordered approximant, and delete this entry of its info or properties",
            )


def _read_atoms(atoms: Atoms, k: int, bulk: bool) -> CrystalBatch:
    check_whole(atoms, k)
    if bulk or atoms.pbc.all():
        _require_periodic(atoms.pbc, k)
    else:
        return _read_free(atoms, k)
    part = _single(atoms.numbers, atoms.positions, atoms.cell.array)
    if len(part.numbers):
        _check_cells(part, k)
    return part.replace(frac=torch.linalg.solve(part.lattice[0].T, part.frac.T).T)  # X = F @ L


def _read_free(atoms: Atoms, k: int) -> CrystalBatch:
    """A slab, wire or molecule in a box of its own, with the label "pbc"."""
    part = _single(atoms.numbers, atoms.positions, atoms.cell.array)
    pbc, points = torch.from_numpy(atoms.pbc.copy()), part.frac
    if not (points.isfinite().all() and part.lattice.isfinite().all()):
        _fail(NonFiniteError, k, "NaN or infinity in the positions or the cell")
    if int(torch.linalg.matrix_rank(part.lattice[0][pbc])) < int(pbc.sum()):
        rows = part.lattice[0][pbc].tolist()
        _fail(CellError, k, f"the periodic cell vectors {rows} are not independent; give one for each")
    if not len(points):
        return part
    lattice, frac = enclose(points, part.lattice[0], pbc)
    return part.replace(frac=frac, lattice=lattice[None], labels={"pbc": pbc[None]})


def _single(numbers: ArrayLike, frac: ArrayLike, lattice: ArrayLike) -> CrystalBatch:
    """One crystal, copied: the arrays of pymatgen and ASE are their owners'."""
    z = torch.from_numpy(np.array(numbers, dtype=np.int64))
    rows = torch.from_numpy(np.array(frac, dtype=np.float64).reshape(-1, 3))
    box = torch.from_numpy(np.array(lattice, dtype=np.float64))
    return CrystalBatch(z, rows, box[None], torch.tensor([len(z)]))


def _require_periodic(pbc: Sequence[bool], k: int) -> None:
    if not all(pbc):
        flags = [bool(p) for p in pbc]
        _fail(
            UnsupportedError,
            k,
            f"pbc is {flags}: molecules, wires and slabs are not supported. If this is a bulk crystal, set "
            "atoms.pbc = True (and a cell)",
        )


# --- checks -----------------------------------------------------------------------------------------------
def _fail(error: type[Exception], k: int, message: str) -> NoReturn:
    raise error(f"structure {k}: {message}")


def _check_atoms(batch: CrystalBatch, max_atoms: int | None, known: Collection[int] | None) -> None:
    for k, count in enumerate(batch.num_atoms.tolist()):
        if count == 0:
            _fail(EmptyStructureError, k, "there are no atoms in it")
        if max_atoms is not None and count > max_atoms:
            message = (
                f"{count} atoms in the cell, at most {max_atoms} are allowed; use a smaller (primitive) cell"
            )
            _fail(TooManyAtomsError, k, message)
    owner = batch.index
    strange = (batch.numbers < 1) | (batch.numbers > MAX_Z)
    if strange.any():
        atom = int(strange.nonzero()[0])
        message = f"atomic number {int(batch.numbers[atom])} is not an element (1 to {MAX_Z})"
        _fail(UnknownElementError, int(owner[atom]), message)
    if known is not None:
        for atom, z in enumerate(batch.numbers.tolist()):
            if z not in known:
                message = f"{symbol(z)} (Z = {z}) is not among the {len(known)} elements known here"
                _fail(UnknownElementError, int(owner[atom]), message)
    broken = ~batch.frac.isfinite().all(-1)
    if broken.any():
        atom = int(broken.nonzero()[0])
        k = int(owner[atom])
        place = atom - int(batch.offsets[k])
        _fail(NonFiniteError, k, f"the coordinates of atom {place} are {batch.frac[atom].tolist()}")


def _check_cells(batch: CrystalBatch, first: int = 0) -> None:
    """Finite, three-dimensional, of atomic size. Atoms need this before their positions meet the cell."""
    lattice = batch.lattice
    finite = lattice.isfinite().flatten(1).all(-1)
    lengths = torch.linalg.vector_norm(lattice, dim=-1)
    volume = determinant(torch.where(finite[:, None, None], lattice, 0)).abs()
    flat = (volume < MIN_VOLUME) | (volume < MIN_SKEW * lengths.prod(-1))
    long = lengths.amax(-1) > MAX_LENGTH
    for k in (~finite | flat | long).nonzero()[:, 0].tolist():
        rows = lattice[k].tolist()
        if not finite[k]:
            _fail(NonFiniteError, first + k, f"NaN or infinity in the cell {rows}")
        if flat[k]:
            message = f"the cell {rows} is singular, its volume is {float(volume[k]):.3g}"
            _fail(CellError, first + k, f"{message}; give three independent vectors in Angstrom")
        message = f"a cell vector is {float(lengths[k].max()):.3g} Angstrom long"
        _fail(CellError, first + k, f"{message}; are the lengths in Angstrom?")


def _check_distances(batch: CrystalBatch, min_distance: float) -> None:
    distances = min_distances(batch)
    for k in (distances < min_distance).nonzero()[:, 0].tolist():
        one, distance = batch[k], float(distances[k])
        pair = ""
        if distance > 0.01:
            found = neighbor_list(one, distance * (1 + 1e-6))
            i, j = int(found.i[0]), int(found.j[0])
            pair = f" (atoms {i} and {j}, {symbol(int(one.numbers[i]))} and {symbol(int(one.numbers[j]))})"
        message = f"two atoms are {distance:.3f} Angstrom apart{pair}, at least {min_distance} are required"
        _fail(OverlappingAtomsError, k, f"{message}; remove duplicate atoms or check the cell")


# --- out of a batch ---------------------------------------------------------------------------------------
def to_structures(batch: CrystalBatch) -> list[Structure]:
    """One pymatgen Structure per crystal, in float64; labels stay behind."""
    from pymatgen.core import Lattice, Structure

    return [
        Structure(Lattice(x.lattice[0].numpy()), [symbol(z) for z in x.numbers.tolist()], x.frac.numpy())
        for x in _cpu(batch).split()
    ]


def to_atoms(batch: CrystalBatch) -> list[Atoms]:
    """One ASE Atoms per crystal, in float64; of the labels only "pbc" is read."""
    from ase import Atoms

    return [
        Atoms(
            x.numbers.numpy(),
            cell=x.lattice[0].numpy(),
            scaled_positions=x.frac.numpy(),
            pbc=x.pbc[0].numpy(),
        )
        for x in _cpu(batch).split()
    ]


def space_group_of(structure: IStructure, symprec: float = 0.1) -> tuple[str, int] | None:
    """Hermann-Mauguin symbol and number by spglib at symprec (Angstrom); None where it gives up."""
    try:
        name, number = structure.get_space_group_info(symprec=symprec)
    except Exception:  # spglib does so on degenerate cells with several exception types
        return None
    return str(name), int(number)


def _cpu(batch: CrystalBatch) -> CrystalBatch:
    return CrystalBatch(
        batch.numbers.cpu(),
        batch.frac.detach().double().cpu(),
        batch.lattice.detach().double().cpu(),
        batch.num_atoms.cpu(),
        {name: value.cpu() for name, value in batch.labels.items() if name == "pbc"},
    )


# --- files ------------------------------------------------------------------------------------------------
class ReadResult(NamedTuple):
    """structures: (name, Structure) in order, a name being the path, with @frame where a file holds several.

    failures: (path, error) of what could not be read.
    """

    structures: list[tuple[str, Structure]]
    failures: list[tuple[str, FileReadError]]


def read_structures(
    paths: str | Path | Iterable[str | Path], on_error: Literal["raise", "skip"] = "raise"
) -> ReadResult:
    """Read the structures of CIF, VASP, (ext)xyz, ASE and pymatgen JSON files (`files.KINDS`), gzipped too.

    Folders and globs are expanded; a folder gives its files of these kinds, sorted by name, without its
    subfolders. Atoms' info, tags and moments stay behind: `relax` keeps them. With on_error="skip" an
    unreadable file or frame (or a path that matches nothing) is listed in `failures` and the others go on.
    """
    result = ReadResult([], [])
    for path in [paths] if isinstance(paths, str | Path) else paths:
        try:
            files = expand(path)
        except FileReadError as error:
            _report(error, str(path), on_error, result)
            continue
        for file in files:
            try:
                found: Sequence[Structure | Atoms] = parse(file)
            except FileReadError as error:
                _report(error, str(file), on_error, result)
                continue
            for n, item in enumerate(found):
                name = str(file) if len(found) == 1 else f"{file}@{n}"
                try:
                    result.structures.append((name, _as_structure(item)))
                except CrystalMLError as error:
                    _report(FileReadError(f"{name}: {told_alone(error)}"), name, on_error, result)
    return result


def told_alone(error: CrystalMLError) -> str:
    """What `to_batch` says of a structure that was handed over alone: without its place."""
    return str(error).removeprefix("structure 0: ")


def _report(error: FileReadError, path: str, on_error: str, result: ReadResult) -> None:
    if on_error == "raise":
        raise error
    result.failures.append((path, error))


def _as_structure(item: Structure | Atoms) -> Structure:
    """Frames read by ASE pass the same door as any Atoms."""
    from pymatgen.core import Structure

    return item if isinstance(item, Structure) else to_structures(to_batch(item, dtype=torch.float64))[0]
