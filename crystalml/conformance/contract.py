"""What ASE and the tools around it rely on: types, names, copies, caching, and errors that say something."""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, Calculator
from ase.io.trajectory import Trajectory

from crystalml.conformance.cases import single
from crystalml.conformance.report import Result, judge, worst
from crystalml.conformance.subject import Refused, Skipped, Subject, describe, guarded, number, refuses
from crystalml.conformance.symmetry import FAR

UNUSUAL = ("Og", "Lr", "Fr", "At", "Po", "Cf")
"""Elements that few models know; the first that is not accepted shows how unknown ones are refused."""


def check_contract(subject: Subject) -> Iterator[Result]:
    """Each function below, by its name."""
    laws: tuple[tuple[str, Callable[[Subject, str], Result]], ...] = (
        ("types/energy", _energy_type),
        ("types/forces", _forces_type),
        ("types/stress", _stress_type),
        ("contract/free-energy", _free_energy),
        ("contract/properties", _own_properties),
        ("contract/input", _input_untouched),
        ("contract/trajectory", _trajectory),
        ("copy/pickle", _pickle),
        ("copy/deepcopy", _deepcopy),
        ("cache/reuse", _reuse),
        ("cache/changes", _changes),
        ("repeat/same", _repeat),
        ("errors/element", _unknown_element),
        ("errors/empty", _empty),
        ("errors/no-cell", _no_cell),
    )
    for name, law in laws:
        yield guarded(name, lambda law=law, name=name: law(subject, name))  # type: ignore[misc]


def _verdict(name: str, good: bool, message: str = "") -> Result:
    return Result(name, "pass" if good else "fail", message=message)


# --- types ------------------------------------------------------------------------------------------------
def _energy_type(subject: Subject, name: str) -> Result:
    atoms = subject.attach(subject.cases.bulk())
    value = atoms.calc.get_property("energy", atoms)
    return _verdict(name, isinstance(value, float), f"{type(value).__module__}.{type(value).__name__}")


def _forces_type(subject: Subject, name: str) -> Result:
    atoms = subject.attach(subject.cases.bulk())
    return _array(name, atoms.calc.get_property("forces", atoms), (len(atoms), 3))


def _stress_type(subject: Subject, name: str) -> Result:
    atoms = subject.attach(subject.cases.bulk())
    try:
        stress = atoms.calc.get_property("stress", atoms)
    except NotImplementedError as error:
        raise Refused(str(error) or "no stress") from error
    return _array(name, stress, (6,))


def _array(name: str, value: Any, shape: tuple[int, ...]) -> Result:
    if not isinstance(value, np.ndarray):
        return _verdict(name, False, f"{type(value).__module__}.{type(value).__name__}, not a numpy array")
    good = value.shape == shape and value.dtype == np.float64
    wanted = "" if good else f"; ASE's contract is float64 {shape}"
    return _verdict(name, good, f"{value.dtype} {value.shape}{wanted}")


# --- names and side effects -------------------------------------------------------------------------------
def _free_energy(subject: Subject, name: str) -> Result:
    """Optimizers ask for the energy that is consistent with the forces, by this name."""
    if "free_energy" not in subject.calc.implemented_properties:
        return _verdict(name, False, "not declared: get_potential_energy(force_consistent=True) raises")
    atoms = subject.attach(subject.cases.bulk())
    energy = number(atoms.get_potential_energy())
    error = abs(number(atoms.get_potential_energy(force_consistent=True)) - energy) / len(atoms)
    return judge(name, error, subject.limits.energy, "eV/atom")


def _own_properties(subject: Subject, name: str) -> Result:
    """BaseCalculator's list is shared by all of ASE: one that extends it speaks for every calculator."""
    bases = [kind for kind in (BaseCalculator, Calculator) if hasattr(kind, "implemented_properties")]
    shared = any(subject.calc.implemented_properties is kind.implemented_properties for kind in bases)
    before = [list(kind.implemented_properties) for kind in bases]
    subject.fresh()
    leaks = before != [list(kind.implemented_properties) for kind in bases]
    message = "the list of properties is ASE's own, shared by all calculators" if shared or leaks else ""
    return _verdict(name, not (shared or leaks), message)


def _input_untouched(subject: Subject, name: str) -> Result:
    """A calculation leaves the atoms as they were, down to atoms outside of the cell."""
    bulk = subject.cases.bulk()
    bulk.positions[0] -= bulk.cell[:].sum(0)
    bulk.info["note"] = "mine"
    atoms = subject.attach(bulk)
    atoms.get_forces()
    changed = [key for key in bulk.arrays if not np.array_equal(bulk.arrays[key], atoms.arrays.get(key))]
    changed += [f"new array {key}" for key in set(atoms.arrays) - set(bulk.arrays)]
    changed += ["cell"] * (not np.array_equal(bulk.cell[:], atoms.cell[:]))
    changed += ["pbc"] * (not np.array_equal(bulk.pbc, atoms.pbc)) + ["info"] * (atoms.info != bulk.info)
    return _verdict(name, not changed, f"changed by a calculation: {', '.join(changed)}" if changed else "")


def _trajectory(subject: Subject, name: str) -> Result:
    """Parameters and results go through JSON into a trajectory and come back."""
    atoms = subject.attach(subject.cases.bulk())
    energy, forces = number(atoms.get_potential_energy()), atoms.get_forces()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.traj"
        try:
            with Trajectory(path, "w", atoms) as trajectory:
                trajectory.write()
            with Trajectory(path) as trajectory:
                back = trajectory[0]
        except Exception as error:
            return _verdict(name, False, describe(error))
    off = max(abs(number(back.get_potential_energy()) - energy), np.abs(back.get_forces() - forces).max())
    return judge(name, off, subject.limits.energy, "eV")


# --- copies -----------------------------------------------------------------------------------------------
def _pickle(subject: Subject, name: str) -> Result:
    return _copies(subject, name, lambda calc: pickle.loads(pickle.dumps(calc)))


def _deepcopy(subject: Subject, name: str) -> Result:
    return _copies(subject, name, copy.deepcopy)


def _copies(subject: Subject, name: str, way: Callable[[Any], Any]) -> Result:
    """Before and after a call, a copy works and gives the same."""
    bulk, off = subject.cases.bulk(), 0.0
    expected = subject.energy(bulk)
    for when in ("fresh", "after a call"):
        calc = subject.fresh()
        try:
            if when != "fresh":
                _use(calc, bulk)
            off = np.maximum(off, abs(_use(way(calc), bulk) - expected))
        except Exception as reason:  # whatever it says: calculators travel between processes
            return _verdict(name, False, f"{when}: {describe(reason)}")
    return judge(name, off / len(bulk), subject.limits.energy, "eV/atom")


def _use(calc: Any, atoms: Atoms) -> float:
    if hasattr(calc, "reset"):
        calc.reset()
    own = atoms.copy()
    own.calc = calc
    return number(own.get_potential_energy())


# --- caching ----------------------------------------------------------------------------------------------
def _reuse(subject: Subject, name: str) -> Result:
    """Asking again computes nothing; a moved atom computes."""
    calc: Any = subject.calc
    calls: list[int] = []
    if not isinstance(calc, Calculator):
        raise Skipped("no ase.calculators.calculator.Calculator: calls of calculate cannot be counted")
    whole = calc.calculate

    def counted(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        whole(*args, **kwargs)

    vars(calc)["calculate"] = counted
    try:
        atoms = subject.attach(subject.cases.bulk())
        counts = []
        for ask in (
            atoms.get_forces,
            atoms.get_forces,
            atoms.get_potential_energy,
            atoms.get_potential_energy,
        ):
            ask()
            counts.append(len(calls))
        atoms.positions[0, 0] += 1e-3
        atoms.get_potential_energy()
        counts.append(len(calls))
    finally:
        del vars(calc)["calculate"]
    if counts[1] != counts[0] or counts[3] != counts[2]:
        return _verdict(name, False, "the same question about the same atoms is computed again")
    return _verdict(
        name, counts[4] > counts[3], "" if counts[4] > counts[3] else "a moved atom goes unnoticed"
    )


def _changes(subject: Subject, name: str) -> Result:
    """After any change of the atoms, the answer is that of a calculator that forgot everything."""
    stale = {}
    for what, change in _CHANGES.items():
        atoms = subject.attach(subject.cases.bulk())
        atoms.get_potential_energy()
        change(atoms)
        try:
            kept = number(atoms.get_potential_energy())
        except Exception as error:
            if not refuses(error):
                raise
            continue
        stale[what] = abs(kept - subject.energy(atoms)) / len(atoms)
    most = max(stale, key=lambda what: stale[what] if np.isfinite(stale[what]) else np.inf)
    limit = subject.limits.energy
    message = f"old result after a change of {most}" if not stale[most] <= limit else ""
    return judge(name, stale[most], limit, "eV/atom", message, by_change=stale)


def _swap(atoms: Atoms) -> None:
    atoms.numbers = np.roll(atoms.numbers, 1)


def _charge(atoms: Atoms) -> None:
    atoms.info.update(charge=1, spin=2, total_charge=1, external_field=0.1)


_CHANGES: dict[str, Callable[[Atoms], object]] = {
    "positions": lambda atoms: atoms.rattle(0.02, seed=3),
    "cell": lambda atoms: atoms.set_cell(1.02 * atoms.cell[:]),
    "numbers": _swap,
    "info": _charge,
    "initial magnetic moments": lambda atoms: atoms.set_initial_magnetic_moments([1.0] * len(atoms)),
    "initial charges": lambda atoms: atoms.set_initial_charges([0.5, -0.5] * (len(atoms) // 2)),
}


def _repeat(subject: Subject, name: str) -> Result:
    """The same atoms give the same energy and forces, whatever was computed in between."""
    bulk = subject.cases.bulk()
    first_energy, first_forces = subject.both(bulk)
    energies, forces = [], []
    for between in (bulk, bulk * (1, 1, 2), subject.cases.one_atom()):
        subject.energy(between)
        energy, force = subject.both(bulk)
        energies.append(abs(energy - first_energy) / len(bulk))
        forces.append(np.abs(force - first_forces).max())
    return worst(
        judge(name, np.max(energies), subject.limits.energy, "eV/atom"),
        judge(name, np.max(forces), subject.limits.forces, "eV/A", "forces"),
    )


# --- errors -----------------------------------------------------------------------------------------------
def _unknown_element(subject: Subject, name: str) -> Result:
    """An element that the model does not know is refused by name, not by a KeyError."""
    for symbol in UNUSUAL:
        atoms = single(symbol)
        try:
            energy = subject.energy(atoms)
        except Exception as error:
            names = (symbol, str(atoms.numbers[0]))
            return _verdict(name, refuses(error, names), f"{symbol}: {describe(error)}")
        if not np.isfinite(energy):
            return _verdict(name, False, f"{symbol}: the energy is {energy}")
    return _verdict(name, True, f"accepts all of {', '.join(UNUSUAL)}")


def _empty(subject: Subject, name: str) -> Result:
    """No atoms: zero energy or a clear error."""
    outcomes = []
    for atoms in (Atoms(), Atoms(cell=[4, 4, 4], pbc=True)):
        where = "in a periodic cell" if atoms.pbc.all() else "without a cell"
        try:
            energy = subject.energy(atoms)
            outcomes.append((energy == 0, f"{where}: {energy:g} eV"))
        except Exception as error:
            outcomes.append((refuses(error), f"{where}: {describe(error)}"))
    return _verdict(name, all(good for good, _ in outcomes), "; ".join(text for _, text in outcomes))


def _no_cell(subject: Subject, name: str) -> Result:
    """Periodic, but no cell to repeat: a clear error."""
    atoms = subject.cases.molecule()
    atoms.pbc = True
    try:
        energy = subject.energy(atoms)
    except Exception as error:
        return _verdict(name, refuses(error), describe(error))
    same = not subject.box and abs(energy - subject.energy(subject.cases.molecule())) < FAR
    return _verdict(name, same, f"{energy:.6g} eV" + (", as the molecule" if same else ""))
