"""From atoms that are alone, through the cutoff, down to atoms on top of each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement

import numpy as np
from ase.data import chemical_symbols

from crystalml.conformance.cases import DIMERS, Pair, bond, isolated
from crystalml.conformance.report import Result, judge, worst
from crystalml.conformance.subject import Skipped, Subject, describe, guarded, refuses
from crystalml.conformance.symmetry import FAR

CLOSEST = 0.3  # Angstrom: nearer than any relaxation or generator should leave two atoms
REPULSIVE = 0.7  # of the sum of covalent radii: below it, all pairs of atoms repel each other
HOLE = 1e-3  # eV
JUMP_ENERGY = {"float64": 1e-4, "float32": 1e-3}  # eV
JUMP_FORCE = {"float64": 2e-3, "float32": 1e-2}  # eV/A
LAST_ELEMENT = 103

Path = Callable[[float], tuple[float, float]]
"""x in Angstrom -> (energy, -dE/dx)."""


def check_isolated(subject: Subject) -> Iterator[Result]:
    """Atoms alone: finite, without force, the same in any box, and additive."""
    yield guarded("isolated/free", lambda: _free(subject))
    yield guarded("isolated/box", lambda: _boxes(subject))
    yield guarded("isolated/additive", lambda: _additive(subject))


def _free(subject: Subject) -> Result:
    highest = 0.0
    for symbol in dict.fromkeys(subject.cases.pair):
        energy, forces = subject.both(isolated(symbol))
        highest = np.maximum(highest, np.abs(forces).max() if np.isfinite(energy) else np.nan)
    return judge("isolated/free", highest, subject.limits.forces, "eV/A")


def _boxes(subject: Subject) -> Result:
    symbol = subject.cases.pair[0]
    energies = [subject.energy(isolated(symbol, box)) for box in (20.0, 24.0, 31.0)]
    return judge("isolated/box", np.ptp(energies), FAR, "eV", f"{symbol}: {energies[0]:.6g} eV")


def _additive(subject: Subject) -> Result:
    """E(A ... B) = E(A) + E(B) when they are far apart."""
    first, second = subject.cases.pair
    box = 60.0 if subject.box else None
    apart = isolated(first, box)
    apart += isolated(second)
    apart.positions[1] += 28.0
    error = abs(subject.energy(apart) - sum(subject.energy(isolated(name, box)) for name in (first, second)))
    return judge("isolated/additive", error, 2 * FAR, "eV")


def check_smooth(subject: Subject) -> Iterator[Result]:
    """No jump of energy or force while atoms enter and leave each other's reach."""
    yield guarded("smooth/dimer", lambda: _smooth_dimer(subject))
    yield guarded("smooth/bulk", lambda: _smooth_bulk(subject))


def _smooth_dimer(subject: Subject) -> Result:
    """From 2 to 8 Angstrom (or from 0.8 bonds, if that is more)."""

    def path(distance: float) -> tuple[float, float]:
        atoms = subject.dimer(distance)
        energy, forces = subject.both(atoms)
        direction = atoms.positions[1] - atoms.positions[0]
        return energy, float(forces[1] @ direction / np.linalg.norm(direction))

    start = max(2.0, 0.8 * bond(subject.cases.pair))
    noise = subject.noise(subject.dimer(start))
    return _smooth(subject, "smooth/dimer", path, np.linspace(start, 8.0, 100), noise)


def _smooth_bulk(subject: Subject) -> Result:
    """One atom of a crystal moves by an Angstrom; its neighbours come and go."""
    crystal = subject.cases.bulk() * (2, 2, 1)
    direction = np.array([0.64, 0.48, 0.60])

    def path(shift: float) -> tuple[float, float]:
        moved = crystal.copy()
        moved.positions[0] += shift * direction
        energy, forces = subject.both(moved)
        return energy, float(forces[0] @ direction)

    return _smooth(subject, "smooth/bulk", path, np.linspace(-0.5, 0.5, 50), subject.noise(crystal))


def _smooth(subject: Subject, name: str, path: Path, grid: np.ndarray, noise: float) -> Result:
    energy, force, where = jumps(path, grid)
    most = JUMP_ENERGY[subject.dtype] + 20 * noise
    by_energy = judge(name, energy, most, "eV", f"largest near {where[0]:.3f} A" if energy > most else "")
    most = JUMP_FORCE[subject.dtype]
    by_force = judge(name, force, most, "eV/A", f"force jumps near {where[1]:.3f} A" if force > most else "")
    return worst(by_energy, by_force)


def jumps(path: Path, grid: np.ndarray, halvings: int = 9) -> tuple[float, float, tuple[float, float]]:
    """Largest jumps of energy and of force along a path, and where.

    The intervals that disagree most with a smooth curve are halved towards the disagreement. Over an
    interval d a smooth change is proportional to d, a jump is not: J = 2 |change over d/2| - |change over d|.
    """
    known = {float(x): path(float(x)) for x in grid}
    best = []
    for kind in (0, 1):
        ranked = sorted(range(len(grid) - 1), key=lambda i: -_suspicion(kind, grid, known, i))
        found = [
            _close_in(kind, path, known, float(grid[i]), float(grid[i + 1]), halvings) for i in ranked[:3]
        ]
        best.append(max(found, key=lambda item: item[0] if np.isfinite(item[0]) else np.inf))
    if not all(np.isfinite(value) for pair in known.values() for value in pair):
        best = [(np.nan, best[0][1]), (np.nan, best[1][1])]
    return best[0][0], best[1][0], (best[0][1], best[1][1])


Known = dict[float, tuple[float, float]]


def _suspicion(kind: int, grid: np.ndarray, known: Known, i: int) -> float:
    """How far the change over interval i is from what the forces (or the neighbouring intervals) predict."""
    if kind == 0:
        return _residual(0, known, float(grid[i]), float(grid[i + 1]))
    force = [known[float(grid[k])][1] for k in range(max(0, i - 1), min(len(grid), i + 3))]
    changes = np.diff(force)
    here = min(i, 1)
    return float(abs(changes[here]) - np.delete(np.abs(changes), here).max(initial=0.0))


def _residual(kind: int, known: Known, a: float, b: float) -> float:
    (e0, f0), (e1, f1) = known[a], known[b]
    return abs(e1 - e0 + (b - a) * (f0 + f1) / 2) if kind == 0 else abs(f1 - f0)


def _close_in(kind: int, path: Path, known: Known, a: float, b: float, halvings: int) -> tuple[float, float]:
    """(size of the jump between a and b, where)."""
    whole = abs(known[b][kind] - known[a][kind])
    for _ in range(halvings):
        middle = (a + b) / 2
        known[middle] = path(middle)
        whole = abs(known[b][kind] - known[a][kind])
        left = _residual(kind, known, a, middle) > _residual(kind, known, middle, b)
        a, b = (a, middle) if left else (middle, b)
    return max(0.0, 2 * abs(known[b][kind] - known[a][kind]) - whole), (a + b) / 2


def check_dimers(subject: Subject) -> Iterator[Result]:
    """No hole: below 0.7 of the sum of covalent radii, the energy never falls as two atoms approach."""
    yield guarded("dimer/holes", lambda: _holes(subject))


def _holes(subject: Subject) -> Result:
    pairs = [pair for pair in _pairs(subject) if subject.knows(pair[0]) and subject.knows(pair[1])]
    if not pairs:
        raise Skipped("the calculator knows none of the elements of the pairs")
    found = {"-".join(pair): _approach(subject, pair) for pair in pairs}
    depth, name = max(
        (np.inf if np.isnan(entry["hole"]) else entry["hole"], key) for key, entry in found.items()
    )
    at, refused = found[name]["at"], [entry["refused_below"] for entry in found.values()]
    message = f"{len(pairs)} pairs"
    if depth > HOLE:
        holes = sum(not entry["hole"] <= HOLE for entry in found.values())
        message = f"{holes} of {message} have holes; {name} falls by {depth:.3g} eV down to {at:.2f} A"
    elif any(refused):
        message += f"; closer than {max(refused):.2g} A is refused"
    measured = np.nan if np.isinf(depth) else depth
    return judge("dimer/holes", measured, HOLE, "eV", message, pairs=found)


def _pairs(subject: Subject) -> list[Pair]:
    if subject.pairs:
        return list(subject.pairs)
    if subject.all_pairs:
        return list(combinations_with_replacement(chemical_symbols[1 : LAST_ELEMENT + 1], 2))
    known = [pair for pair in DIMERS if subject.knows(pair[0]) and subject.knows(pair[1])]
    return known or [subject.cases.pair]


def _approach(subject: Subject, pair: Pair) -> dict[str, float]:
    """Depth of the deepest fall of the energy on the way in (eV), where it ends, and what is refused."""
    start = REPULSIVE * bond(pair)
    energies, refused = [], 0.0
    distances = np.linspace(start, CLOSEST, max(5, int(np.ceil((start - CLOSEST) / 0.1)) + 1))
    for distance in distances:
        try:
            energies.append(subject.energy(subject.dimer(float(distance), pair)))
        except Exception as error:
            if not refuses(error):
                raise RuntimeError(f"{'-'.join(pair)} at {distance:.2f} A: {describe(error)}") from error
            refused = float(distance)
            break  # an honest "too close": all that is nearer is refused as well
    if not energies:
        return {"hole": 0.0, "at": refused, "refused_below": refused}
    falls = np.maximum.accumulate(energies) - energies
    at = int(np.argmax(falls))
    return {"hole": float(falls[at]), "at": float(distances[at]), "refused_below": refused}
