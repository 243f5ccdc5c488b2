"""The energy knows neither the name of an atom, nor the frame, nor the choice of cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from ase import Atoms

from crystalml.conformance.cases import VACUUM
from crystalml.conformance.report import Result, judge, worst
from crystalml.conformance.subject import Subject, guarded

# det = 1, and large enough that images two cells away trade places with those at home
UNIMODULAR = np.array([[1, 2, 0], [0, 1, -1], [1, 2, 1]])
FAR = 1e-3  # eV/atom: what a model may feel across 30 A of vacuum, as those with charges or dispersion do


def check_invariance(subject: Subject) -> Iterator[Result]:
    """Energy, forces and stress follow the description of the crystal; see each function below."""
    laws: tuple[Callable[[Subject], Result], ...] = (
        _translation, _rotation, _reflection, _permutation, _wrapping, _cell_choice, _left_handed, _supercell,
    )  # fmt: skip
    for law in laws:
        name = f"invariance/{law.__name__[1:].replace('_', '-')}"
        yield guarded(name, lambda law=law: law(subject))  # type: ignore[misc]


def _compare(
    subject: Subject, law: str, before: Atoms, after: Atoms, forces: Callable[[np.ndarray], np.ndarray]
) -> Result:
    """Energy per atom and forces against what they should be; `forces` turns the old into the new."""
    (e0, f0), (e1, f1) = subject.both(before), subject.both(after)
    limits, noise = subject.limits, subject.noise(after)
    energy = abs(e1 / len(after) - e0 / len(before))
    force = float(np.abs(f1 - forces(f0)).max())
    name = f"invariance/{law}"
    scale = max(1.0, float(np.abs(f0).max()))
    by_energy = judge(name, energy, limits.energy + 10 * noise / len(after), "eV/atom", force_error=force)
    by_force = judge(name, force, limits.forces * scale, "eV/A", "forces", energy_error=energy)
    return worst(by_energy, by_force)


def _same(forces: np.ndarray) -> np.ndarray:
    return forces


def _translation(subject: Subject) -> Result:
    bulk = subject.cases.bulk()
    moved = bulk.copy()
    moved.positions += np.array([1.234, -0.567, 2.345])
    return _compare(subject, "translation", bulk, moved, _same)


def _rotation(subject: Subject, reflect: bool = False) -> Result:
    random = np.random.default_rng(subject.seed)
    q, r = np.linalg.qr(random.standard_normal((3, 3)))
    q *= np.sign(np.diagonal(r))
    q *= np.sign(np.linalg.det(q)) * (-1 if reflect else 1)
    bulk = subject.cases.bulk()
    turned = Atoms(bulk.numbers, bulk.positions @ q.T, cell=bulk.cell[:] @ q.T, pbc=True)
    return _compare(subject, "reflection" if reflect else "rotation", bulk, turned, lambda f: f @ q.T)


def _reflection(subject: Subject) -> Result:
    return _rotation(subject, reflect=True)


def _permutation(subject: Subject) -> Result:
    bulk = subject.cases.bulk()
    order = np.roll(np.arange(len(bulk))[::-1], 1)
    return _compare(subject, "permutation", bulk, bulk[order], lambda f: f[order])


def _wrapping(subject: Subject) -> Result:
    """Atoms several cells away from home, each by another lattice vector."""
    bulk = subject.cases.bulk()
    away = bulk.copy()
    away.positions += np.random.default_rng(subject.seed).integers(-3, 4, (len(bulk), 3)) @ bulk.cell[:]
    return _compare(subject, "wrapping", bulk, away, _same)


def _cell_choice(subject: Subject) -> Result:
    """Another basis of the same lattice: L' = M L with integer M, det M = 1."""
    bulk = subject.cases.bulk()
    other = Atoms(bulk.numbers, bulk.positions, cell=UNIMODULAR @ bulk.cell[:], pbc=True)
    return _compare(subject, "cell-choice", bulk, other, _same)


def _left_handed(subject: Subject) -> Result:
    bulk = subject.cases.bulk()
    other = Atoms(bulk.numbers, bulk.positions, cell=bulk.cell[:][[1, 0, 2]], pbc=True)
    return _compare(subject, "left-handed", bulk, other, _same)


def _supercell(subject: Subject) -> Result:
    """Energy per atom of 1 x 2 x 3 cells: extensive, and every image of a small cell is counted."""
    bulk = subject.cases.bulk()
    return _compare(subject, "supercell", bulk, bulk * (1, 2, 3), lambda f: np.tile(f, (6, 1)))


def check_cells(subject: Subject) -> Iterator[Result]:
    """One-atom cells, and periodicity along some directions only."""
    yield guarded("cells/one-atom", lambda: _one_atom(subject))
    yield guarded("pbc/slab", lambda: _partial(subject, "slab", ((0, 1, 2), (2, 0, 1), (1, 2, 0))))
    yield guarded("pbc/tight", lambda: _tight(subject))
    yield guarded("pbc/wire", lambda: _partial(subject, "wire", ((0, 1, 2), (2, 0, 1))))


def _one_atom(subject: Subject) -> Result:
    """No force acts on the only atom of a cell."""
    energy, forces = subject.both(subject.cases.one_atom())
    force = float(np.abs(forces).max()) if np.isfinite(energy) else float("nan")
    return judge("cells/one-atom", force, subject.limits.forces, "eV/A", f"{energy:.6g} eV")


def _tight(subject: Subject) -> Result:
    """Along a vector that is not periodic there are no images, however short the vector is."""
    slab = subject.cases.slab()
    tight = slab.copy()
    tight.cell[2] = [0, 0, 3 * subject.cases.distance]  # the next layer of a crystal would begin here
    tight.pbc = slab.pbc
    closed = tight.copy()
    closed.pbc = True
    expected, found = subject.energy(slab), subject.energy(tight)
    at_stake = abs(subject.energy(closed) - expected) / len(slab)
    tolerance = min(FAR, 0.05 * at_stake) + 10 * subject.noise(slab) / len(slab)
    result = judge("pbc/tight", abs(found - expected) / len(slab), tolerance, "eV/atom")
    message = "images across a direction that is not periodic" if result.status == "fail" else ""
    return replace(result, message=message)


def _partial(subject: Subject, kind: str, orders: tuple[tuple[int, int, int], ...]) -> Result:
    """Without periodicity along the vacuum, all is as with it, whichever vector that is."""
    atoms, periodic = subject.cases.slab(), 2
    if kind == "wire":
        cell, periodic = atoms.cell[:].copy(), 1
        cell[1] += VACUUM * cell[1] / np.linalg.norm(cell[1])
        atoms.set_cell(cell)
    closed, alone = atoms.copy(), atoms.copy()
    closed.pbc, alone.pbc = True, False
    expected, energies = subject.energy(closed), []
    for order in orders:
        turned = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell[:][list(order)])
        turned.pbc = [vector < periodic for vector in order]
        energies.append(subject.energy(turned))
    error = np.abs(np.array(energies) - expected).max() / len(atoms)
    try:
        bound = abs(subject.energy(alone) - expected) / len(atoms)  # what periodicity is worth
    except Exception:  # a calculator may serve slabs and no molecules
        bound = np.inf
    tolerance = min(FAR, 0.05 * bound) + 10 * subject.noise(atoms) / len(atoms)
    result = judge(f"pbc/{kind}", error, tolerance, "eV/atom", energies=energies, all_periodic=expected)
    if result.status == "fail" and abs(error - bound) <= 0.05 * bound:
        return replace(result, message="all periodicity is dropped: the energy is that of a molecule")
    return result
