"""Forces and stress are the derivatives of the energy, in ASE's units, sign and order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from ase import Atoms
from ase.units import GPa

from crystalml.conformance.cases import VACUUM
from crystalml.conformance.report import Result, judge
from crystalml.conformance.subject import Refused, Subject, guarded

MAX_COMPONENTS = 8
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
UNITS = {
    "eV/A^3": 1.0,
    "GPa": 1 / GPa,
    "kbar": 10 / GPa,
    "bar": 1e4 / GPa,
    "eV (not divided by the volume)": 0,
}
ORDERS = {  # for each of the six numbers given, its place in ASE's order
    "xx yy zz yz xz xy": (0, 1, 2, 3, 4, 5),
    "xx yy zz xy yz xz": (0, 1, 2, 5, 3, 4),
    "xx yy zz xy xz yz": (0, 1, 2, 5, 4, 3),
}


def slope(energy: Callable[[float], float], step: float) -> float:
    """dE/dx at 0 by central differences of fourth order."""
    near = energy(step) - energy(-step)
    far = energy(2 * step) - energy(-2 * step)
    return (8 * near - far) / (12 * step)


def best_step(noise: float) -> float:
    """Angstrom: balances noise / h against h^4 / 30 times a fifth derivative of 3e5 eV/A^5 (CHGNet's)."""
    return float(np.clip((noise / 1e4) ** 0.2, 1e-3, 2e-2))


def numerical_stress(subject: Subject, atoms: Atoms, step: float) -> np.ndarray:
    """(1/V) dE/d(strain) in Voigt order."""

    def strained(component: int, size: float) -> float:
        i, j = VOIGT[component]
        strain = np.zeros((3, 3))
        strain[i, j] += size / 2
        strain[j, i] += size / 2
        moved = atoms.copy()
        moved.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=False)
        moved.positions = atoms.positions @ (np.eye(3) + strain)
        return subject.energy(moved)

    slopes = [slope(lambda size, c=c: strained(c, size), step) for c in range(6)]  # type: ignore[misc]
    return np.array(slopes) / atoms.get_volume()


class Convention:
    """Which unit, sign and order turn the calculator's stress into the derivative, told from one bulk.

    Only a clear match (within 5 %) counts; the checks on the derivative itself compare after that
    translation, so that a wrong unit is one failure and not four.
    """

    def __init__(self, given: np.ndarray, expected: np.ndarray, volume: float) -> None:
        self.unit, self.sign, self.order = "eV/A^3", 1, "xx yy zz yz xz xy"
        best = self._error(given, expected, volume)
        self.clear = best < 0.05
        for unit, sign, order in product(UNITS, (1, -1), ORDERS):
            other = Convention.__new__(Convention)
            other.unit, other.sign, other.order = unit, sign, order
            error = other._error(given, expected, volume)
            if error < min(0.05, best / 3):
                self.unit, self.sign, self.order, self.clear, best = unit, sign, order, True, error

    def translate(self, given: np.ndarray, volume: float) -> np.ndarray:
        """To eV/A^3, positive when the cell wants to shrink, in Voigt order."""
        told = np.empty(6)
        told[list(ORDERS[self.order])] = given
        return self.sign * told / (UNITS[self.unit] or volume)

    def _error(self, given: np.ndarray, expected: np.ndarray, volume: float) -> float:
        rest = self.translate(given, volume) - expected
        return float(np.abs(rest).max() / np.abs(expected).max())


def check_forces(subject: Subject) -> Iterator[Result]:
    """F = -dE/dx by central differences, for a bulk, a slab and a molecule."""
    for kind in ("bulk", "slab", "molecule"):
        yield guarded(f"forces/{kind}", lambda kind=kind: _forces(subject, kind))  # type: ignore[misc]


def _forces(subject: Subject, kind: str) -> Result:
    atoms = getattr(subject.cases, kind)()
    forces, noise = subject.forces(atoms), subject.noise(atoms)
    step = best_step(noise)
    random = np.random.default_rng(subject.seed)
    chosen = random.permutation(3 * len(atoms))[:MAX_COMPONENTS]

    def moved(index: int, size: float) -> float:
        other = atoms.copy()
        other.positions[index // 3, index % 3] += size
        return subject.energy(other)

    expected = np.array([-slope(lambda size, k=k: moved(k, size), step) for k in chosen])  # type: ignore[misc]
    found = forces.ravel()[chosen]
    tolerance = subject.limits.slope * float(np.abs(expected).max()) + subject.limits.forces / 10
    tolerance += 10 * noise / step
    return judge(
        f"forces/{kind}",
        np.abs(found - expected).max(),
        tolerance,
        "eV/A",
        _ratio(found, expected),
        step=step,
    )


def check_stress(subject: Subject) -> Iterator[Result]:
    """Stress = +(1/V) dE/d(strain), eV/A^3, Voigt order xx yy zz yz xz xy: unit, sign, order and values."""
    try:
        convention = _convention(subject)
    except Refused as error:
        for what in ("units", "sign", "order", "bulk", "slab", "molecule"):
            yield Result(f"stress/{what}", "refused", message=str(error))
        return
    unclear = "" if convention.clear else "unlike the derivative in any known unit, sign or order"
    unit, sign, order = convention.unit, convention.sign, convention.order
    yield judge("stress/units", float(unit != "eV/A^3"), 0.5, "", unclear or f"in {unit}")
    yield judge("stress/sign", float(sign != 1), 0.5, "", unclear or ("opposite" if sign < 0 else "as ASE's"))
    yield judge("stress/order", float(order != "xx yy zz yz xz xy"), 0.5, "", unclear or order)
    for kind in ("bulk", "slab", "molecule"):
        yield guarded(f"stress/{kind}", lambda kind=kind: _stress(subject, kind, convention))  # type: ignore[misc]


def _convention(subject: Subject) -> Convention:
    bulk = subject.cases.bulk()
    given = subject.stress(bulk)
    expected = numerical_stress(subject, bulk, best_step(subject.noise(bulk)) / 3)
    return Convention(given, expected, bulk.get_volume())


def _stress(subject: Subject, kind: str, convention: Convention) -> Result:
    atoms = getattr(subject.cases, kind)()
    if kind == "molecule":  # a volume is needed to speak of stress at all
        atoms.set_cell(VACUUM / 2 * np.eye(3))
        atoms.positions += VACUUM / 6
    volume, noise = atoms.get_volume(), subject.noise(atoms)
    step = best_step(noise) / 3  # strain: atoms a bond apart move by about as much as in the check on forces
    found = convention.translate(subject.stress(atoms), volume)
    expected = numerical_stress(subject, atoms, step)
    tolerance = subject.limits.slope * float(np.abs(expected).max()) + subject.limits.stress / 10
    tolerance += 10 * noise / (step * volume)
    message = _ratio(found, expected, volume)
    return judge(f"stress/{kind}", np.abs(found - expected).max(), tolerance, "eV/A^3", message, step=step)


def _ratio(found: np.ndarray, expected: np.ndarray, volume: float = 0.0) -> str:
    """By which factor the values are too large, in the least-squares sense."""
    size = float(expected @ expected)
    factor = float(found @ expected) / size if size > 1e-16 else float("nan")
    if volume and abs(factor / volume - 1) < 0.05:
        return f"{factor:.3g} times the finite difference: not divided by the volume of the cell"
    return "" if abs(factor - 1) < 0.01 else f"{factor:.3g} times the finite difference"
