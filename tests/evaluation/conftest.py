"""A small world: five salts that are known, and samples of which we know what is right and wrong."""

from __future__ import annotations

import pytest
from pymatgen.core import Lattice, Structure

SALTS = {"NaCl": 5.64, "KCl": 6.29, "MgO": 4.21, "CaO": 4.81, "LiF": 4.03}


def rocksalt(formula: str, a: float | None = None) -> Structure:
    cation, anion = {"NaCl": ("Na", "Cl"), "KCl": ("K", "Cl"), "MgO": ("Mg", "O"), "CaO": ("Ca", "O"),
                     "LiF": ("Li", "F")}[formula]  # fmt: skip
    cell = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(a or SALTS[formula]), [cation, anion], [[0] * 3, [0.5] * 3]
    )
    return cell.get_primitive_structure()


def cscl(cation: str, anion: str, a: float) -> Structure:
    return Structure(Lattice.cubic(a), [cation, anion], [[0] * 3, [0.5] * 3])


@pytest.fixture(scope="session")
def salts() -> list[Structure]:
    return [rocksalt(name) for name in SALTS]


@pytest.fixture
def samples() -> list[Structure | None]:
    """8 samples: salt twice (once as a supercell), MgO, four crystals of which one overlaps, one missing."""
    overlapping = Structure(Lattice.cubic(5), ["Na", "Cl"], [[0] * 3, [0.05, 0, 0]])
    return [
        rocksalt("NaCl"),
        rocksalt("NaCl") * (2, 1, 1),
        rocksalt("MgO", 4.3),
        cscl("Na", "Cl", 3.4),
        cscl("Cs", "Br", 4.29),
        Structure(Lattice.cubic(6), ["Na", "Na", "Cl"], [[0] * 3, [0.5, 0.5, 0], [0.5, 0, 0.5]]),
        overlapping,
        None,
    ]
