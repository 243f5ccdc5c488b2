"""Relaxation of crystals one at a time with any ASE calculator."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from crystalml.convert import read_structures
from crystalml.errors import CrystalMLError, InputError

OPTIMIZERS = {"FIRE": FIRE, "BFGS": BFGS}
SYMPREC = 0.1  # Angstrom


class Relaxation(TypedDict):
    """Outcome of one relaxation; `final_structure` and `trajectory` as in matgl and CHGNet."""

    final_structure: Structure
    trajectory: dict[str, list[float]]  # "energies" in eV a cell and "fmax" in eV/A, one value a step
    energy: float  # eV a cell
    converged: bool
    n_steps: int
    fmax: float  # eV/A, cell included
    spacegroup_before: str
    spacegroup_after: str


@dataclass
class RelaxReport:
    """Relaxed crystals by name, and what could not be read or relaxed, with the reason."""

    results: list[tuple[str, Relaxation]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)


def relax(
    structures: Structure | Atoms | Iterable[Structure | Atoms],
    calculator: Calculator,
    fmax: float = 0.05,
    steps: int = 500,
    cell: bool = True,
    optimizer: str = "FIRE",
    niggli: bool = True,
) -> list[Relaxation]:
    """Relax each crystal until no force exceeds fmax (eV/A); with cell=True its cell as well.

    Forces and cell gradient are minimised together on the log of the deformation (ASE FrechetCellFilter).
    niggli=True swaps a cell that has clearly shorter vectors for its Niggli-reduced form, where DAO models
    are at home; a cell as short as that keeps its own axes (see `reduced`).
    A run that stops at `steps` comes back with converged=False. Raises what the calculator raises.
    """
    one = isinstance(structures, Structure | Atoms)
    items: Iterable[Structure | Atoms] = [structures] if one else structures  # type: ignore[assignment, list-item]
    return [_relax_one(item, calculator, fmax, steps, cell, optimizer, niggli) for item in items]


def relax_files(
    paths: str | Path | Iterable[str | Path],
    calculator: Calculator,
    fmax: float = 0.05,
    steps: int = 500,
    cell: bool = True,
    optimizer: str = "FIRE",
    niggli: bool = True,
    on_done: Callable[[str, Relaxation | None, str], None] | None = None,
) -> RelaxReport:
    """Relax every crystal in files, folders or globs; a bad one is reported and the others go on.

    on_done(name, result or None, reason) is called after each. Arguments as in `relax`.
    """
    read = read_structures(paths, on_error="skip")
    report = RelaxReport(failures=[(str(path), str(error)) for path, error in read.failures])
    for name, structure in read.structures:
        result, reason = None, ""
        try:
            result = relax(structure, calculator, fmax, steps, cell, optimizer, niggli)[0]
            report.results.append((str(name), result))
        except CrystalMLError as error:
            reason = str(error)
            report.failures.append((str(name), reason))
        if on_done:
            on_done(str(name), result, reason)
    return report


def spacegroup(structure: Structure, symprec: float = SYMPREC) -> str:
    """Hermann-Mauguin symbol and number by spglib, such as "P6/mmm (191)"; "P1 (1)" if none is found."""
    try:
        finder = SpacegroupAnalyzer(structure, symprec=symprec)
        return f"{finder.get_space_group_symbol()} ({finder.get_space_group_number()})"
    except Exception:  # spglib gives up on degenerate cells with several exception types
        return "P1 (1)"


def _relax_one(
    item: Structure | Atoms,
    calculator: Calculator,
    fmax: float,
    steps: int,
    cell: bool,
    optimizer: str,
    niggli: bool,
) -> Relaxation:
    if optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {optimizer!r}.")
    if fmax <= 0 or steps < 0:
        raise InputError(f"fmax must be positive and steps 0 or more, not {fmax!r} and {steps!r}.")
    atoms = _start(item, niggli)
    before = spacegroup(_structure(atoms))
    atoms.calc = calculator
    energies: list[float] = []
    largest: list[float] = []
    target = FrechetCellFilter(atoms) if cell else atoms

    def note() -> None:
        energies.append(float(atoms.get_potential_energy()))
        largest.append(float(np.linalg.norm(target.get_forces(), axis=1).max()))

    run: Any = OPTIMIZERS[optimizer](target, logfile=None)
    run.attach(note)
    converged = bool(run.run(fmax=fmax, steps=steps))
    final = _structure(atoms)
    return Relaxation(
        final_structure=final,
        trajectory={"energies": energies, "fmax": largest},
        energy=energies[-1],
        converged=converged,
        n_steps=int(run.get_number_of_steps()),
        fmax=largest[-1],
        spacegroup_before=before,
        spacegroup_after=spacegroup(final),
    )


def _start(item: Structure | Atoms, niggli: bool) -> Atoms:
    if isinstance(item, Atoms):
        atoms = item.copy()
        if not niggli or not atoms.pbc.all() or atoms.cell.rank < 3:
            return atoms  # what is not a bulk crystal goes on to the calculator, which says why it cannot
        item = _structure(atoms)
    return _atoms(reduced(item) if niggli else item)


def reduced(structure: Structure, tolerance: float = 0.02) -> Structure:
    """The Niggli-reduced form, unless the cell's vectors are as short already, within `tolerance`.

    Reduction is discontinuous: of a rattled hexagonal cell it may return gamma near 60 instead of 120
    degrees, and an energy that depends on the choice of axes would jump.
    """
    short = structure.get_reduced_structure("niggli")
    return short if sum(short.lattice.abc) < (1 - tolerance) * sum(structure.lattice.abc) else structure


def _atoms(structure: Structure) -> Atoms:
    return AseAtomsAdaptor.get_atoms(structure, msonable=False)


def _structure(atoms: Atoms) -> Structure:
    return Structure(atoms.cell[:], atoms.get_chemical_symbols(), atoms.get_scaled_positions())
