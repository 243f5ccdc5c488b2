"""Typed-in members of a few structure types (lattice parameters in Angstrom)."""

import pytest
from pymatgen.core import Lattice, Structure


def rock_salt(cation: str, anion: str, a: float) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


def caesium_chloride(cation: str, anion: str, a: float) -> Structure:
    return Structure.from_spacegroup("Pm-3m", Lattice.cubic(a), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


def fluorite(cation: str, anion: str, a: float) -> Structure:
    sites = [[0, 0, 0], [0.25, 0.25, 0.25]]
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), [cation, anion], sites)


def perovskite(big: str, small: str, anion: str, a: float) -> Structure:
    sites = [[0.5, 0.5, 0.5], [0, 0, 0], [0.5, 0, 0]]
    return Structure.from_spacegroup("Pm-3m", Lattice.cubic(a), [big, small, anion], sites)


def rutile(cation: str, anion: str, a: float, c: float, u: float) -> Structure:
    sites = [[0, 0, 0], [u, u, 0]]
    return Structure.from_spacegroup("P4_2/mnm", Lattice.tetragonal(a, c), [cation, anion], sites)


def wurtzite(cation: str, anion: str, a: float, c: float, u: float) -> Structure:
    sites = [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, u]]
    return Structure.from_spacegroup("P6_3mc", Lattice.hexagonal(a, c), [cation, anion], sites)


def delafossite(a_site: str, b_site: str, anion: str, a: float, c: float, z: float) -> Structure:
    sites = [[0, 0, 0], [0, 0, 0.5], [0, 0, z]]
    return Structure.from_spacegroup("R-3m", Lattice.hexagonal(a, c), [a_site, b_site, anion], sites)


def baddeleyite(cation: str, a: float, b: float, c: float, beta: float) -> Structure:
    sites = [[0.276, 0.041, 0.208], [0.070, 0.332, 0.345], [0.442, 0.755, 0.479]]
    return Structure.from_spacegroup("P2_1/c", Lattice.monoclinic(a, b, c, beta), [cation, "O", "O"], sites)


@pytest.fixture(scope="session")
def members() -> list[Structure]:
    """Members of eight types; each type is named by its space group and amounts."""
    return [
        rock_salt("Na", "Cl", 5.64), rock_salt("K", "Cl", 6.29), rock_salt("Li", "F", 4.03),
        rock_salt("Mg", "O", 4.21), caesium_chloride("Cs", "Cl", 4.12), caesium_chloride("Cs", "Br", 4.29),
        fluorite("Ca", "F", 5.46), fluorite("Sr", "F", 5.80), fluorite("Ce", "O", 5.41),
        perovskite("Sr", "Ti", "O", 3.905), perovskite("Ba", "Ti", "O", 4.00),
        perovskite("Cs", "Ca", "Cl", 5.40), rutile("Ti", "O", 4.594, 2.959, 0.305),
        rutile("Sn", "O", 4.737, 3.186, 0.307), wurtzite("Zn", "O", 3.25, 5.207, 0.382),
        wurtzite("Ga", "N", 3.19, 5.189, 0.377), delafossite("Cu", "Al", "O", 2.858, 16.96, 0.11),
        delafossite("Ag", "Ga", "O", 2.99, 18.53, 0.115), baddeleyite("Zr", 5.15, 5.21, 5.32, 99.2),
        baddeleyite("Hf", 5.12, 5.17, 5.29, 99.2),
    ]  # fmt: skip
