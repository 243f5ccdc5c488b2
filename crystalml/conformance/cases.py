"""The structures that the checks look at: low symmetry, so that no error cancels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

Pair = tuple[str, str]

FAMILIES: tuple[Pair, ...] = (("Na", "Cl"), ("Cu", "Au"), ("C", "O"), ("Ar", "Ar"))
"""Elements to build cases from; the first family that a calculator knows is taken."""

DIMERS: tuple[Pair, ...] = (
    ("H", "H"), ("H", "O"), ("C", "O"), ("O", "O"), ("N", "Ti"), ("O", "Si"), ("Na", "Cl"), ("Al", "Ni"),
    ("O", "Fe"), ("Cu", "Cu"), ("Au", "Au"), ("I", "Cs"), ("O", "La"), ("O", "U"),
)  # fmt: skip
"""Bonds of every kind: covalent, ionic, metallic, of light and of heavy elements."""

VACUUM = 30.0  # Angstrom; further than any short-ranged model sees


def bond(pair: Pair) -> float:
    """Sum of the covalent radii (Cordero et al., Dalton Trans. 2008, 2832), in Angstrom."""
    return float(sum(covalent_radii[atomic_numbers[name]] for name in pair))


def _shaken(atoms: Atoms, seed: int, strain: float = 0.05, shake: float = 0.15) -> Atoms:
    """Strained and rattled, so that no force, stress component or angle is zero or equal to another."""
    random = np.random.default_rng(seed)
    deformation = np.eye(3) + strain * random.uniform(-1, 1, (3, 3))
    atoms.set_cell(atoms.cell[:] @ deformation, scale_atoms=True)
    atoms.positions += shake * random.uniform(-1, 1, atoms.positions.shape)
    return atoms


@dataclass(frozen=True)
class Cases:
    """One structure of each kind made of two elements (which may be the same)."""

    pair: Pair
    seed: int = 0

    @property
    def distance(self) -> float:
        """Of neighbours, in Angstrom: that of NaCl is 2.81."""
        return 1.05 * bond(self.pair)

    def bulk(self) -> Atoms:
        """Rock salt, four atoms."""
        d = self.distance
        cell = [[0, d, d], [d, 0, d], [d, d, 0]]
        atoms = Atoms(self.pair, scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]], cell=cell, pbc=True)
        return _shaken(atoms * (1, 1, 2), self.seed)

    def slab(self) -> Atoms:
        """Three layers of rock salt (100), six atoms, periodic along the first two vectors."""
        d, (first, second) = self.distance, self.pair
        symbols, positions = [], []
        for layer in range(3):
            symbols += [first, second] if layer % 2 == 0 else [second, first]
            positions += [[0, 0, layer * d], [d, 0, layer * d]]
        cell = [[d, -d, 0], [d, d, 0], [0, 0, VACUUM]]
        atoms = Atoms(symbols, positions, cell=cell, pbc=(True, True, False))
        shaken = _shaken(atoms, self.seed)
        cell = shaken.cell[:]
        cell[2] = [0, 0, VACUUM]
        shaken.set_cell(cell)
        shaken.positions[:, 2] += 0.5 * (VACUUM - 2 * d)
        return shaken

    def molecule(self) -> Atoms:
        """A pyramid of four atoms; no cell."""
        d, (first, second) = self.distance, self.pair
        positions = np.array([[0, 0, 0], [d, 0, 0], [0.35 * d, 0.95 * d, 0], [0.4 * d, 0.4 * d, 0.9 * d]])
        shake = 0.05 * np.random.default_rng(self.seed).uniform(-1, 1, positions.shape)
        return Atoms([first, second, first, second], positions + shake)

    def one_atom(self) -> Atoms:
        """One atom in a triclinic cell, smaller than any cutoff."""
        return _shaken(single(self.pair[0]), self.seed, shake=0)

    def dimer(self, distance: float, pair: Pair | None = None, box: bool = False) -> Atoms:
        """Two atoms along a direction of no special kind; box=True puts them into a large periodic cell."""
        direction = np.array([0.48, 0.60, 0.64])
        atoms = Atoms(pair or self.pair, [np.zeros(3), distance * direction / np.linalg.norm(direction)])
        if box:
            atoms.set_cell(VACUUM * np.eye(3))
            atoms.pbc = True
            atoms.positions += 10.0
        return atoms


def single(symbol: str) -> Atoms:
    """A face-centred cubic crystal of one atom; neighbours are 2 Angstrom apart or more."""
    d = max(2.0, 1.1 * bond((symbol, symbol))) / np.sqrt(2)
    return Atoms(symbol, cell=[[0, d, d], [d, 0, d], [d, d, 0]], pbc=True)


def isolated(symbol: str, box: float | None = None) -> Atoms:
    """One atom alone: without a cell, or in a periodic cube of that edge."""
    atoms = Atoms(symbol, [[1.0, 2.0, 3.0]])
    if box is not None:
        atoms.set_cell(box * np.eye(3))
        atoms.pbc = True
    return atoms
