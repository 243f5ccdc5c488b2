"""What the library knows of the chemical elements: symbols, radii and one-hot features.

Importing this module needs neither pymatgen nor ASE; only `element_features`, `covalent_radii` and
`atomic_masses` look their data up there, on first use. A model keeps the feature table in its checkpoint.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crystalml.errors import UnknownElementError

if TYPE_CHECKING:
    from pymatgen.core import Element

_TABLE = (
    "X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr "
    "Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb "
    "Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf "
    "Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
)
SYMBOLS = tuple(_TABLE.split())
MAX_Z = len(SYMBOLS) - 1

_NUMBERS = {symbol: z for z, symbol in enumerate(SYMBOLS) if z} | {"D": 1, "T": 1}


def symbol(z: int) -> str:
    """The chemical symbol of atomic number z, 1 <= z <= 118."""
    if not 1 <= z <= MAX_Z:
        raise UnknownElementError(f"atomic number {z} is not an element; use 1 to {MAX_Z}")
    return SYMBOLS[z]


def atomic_number(name: str) -> int:
    """The atomic number of a chemical symbol; deuterium and tritium (D, T) are hydrogen."""
    if name not in _NUMBERS:
        raise UnknownElementError(f"{name!r} is not a chemical element; use a symbol such as 'Na'")
    return _NUMBERS[name]


def numbers_of(names: Iterable[str] | None) -> set[int]:
    """Atomic numbers of symbols, such as the elements of a model's card; none of None."""
    return {atomic_number(name) for name in names or ()}


@cache
def covalent_radii() -> Tensor:
    """(119,) single-bond covalent radii in Angstrom by Z (Cordero et al. 2008, from ASE).

    Row 0 and the elements past curium (Z > 96), which have no measured radius, hold ASE's placeholder.
    """
    from ase.data import covalent_radii as radii

    return torch.tensor(radii[: MAX_Z + 1], dtype=torch.float32)


@cache
def atomic_masses() -> Tensor:
    """(119,) standard atomic weights in u by Z (from ASE); the longest-lived isotope's where none is."""
    from ase.data import atomic_masses as masses

    return torch.tensor(masses[: MAX_Z + 1], dtype=torch.float32)


@dataclass(frozen=True)
class Bins:
    """One group of the table: a property cut into `count` equal bins over [low, high], ends clamped."""

    name: str
    count: int
    value: Callable[[Element], float | None]
    low: float
    high: float
    log: bool = False

    def index(self, element: Element) -> int | None:
        """The element's bin, or None where pymatgen has no value."""
        value = _lookup(self.value, element)
        if value is None:
            return None
        value = math.log(value) if self.log else value
        return min(max(int((value - self.low) / (self.high - self.low) * self.count), 0), self.count - 1)


def _lookup(value: Callable[[Element], float | None], element: Element) -> float | None:
    try:
        found = value(element)
    except KeyError:  # pymatgen raises it for superheavy elements without data
        return None
    return None if found is None or math.isnan(found) else float(found)


def _valence_electrons(element: Element) -> int:
    """Electrons outside the noble-gas core, not counting a closed f shell, or a closed d shell under p.

    Counts past 12 (Ho, Er, Tm and their actinides) wrap to 1, 2, 3: clamped, Dy, Ho and Er would share a row.
    """
    shells = re.findall(r"\d([spdf])(\d+)", element.electronic_structure.rpartition("]")[2])
    under_p = any(kind == "p" for kind, _ in shells)
    closed = {("f", "14"), ("d", "10")} if under_p else {("f", "14")}
    count = sum(int(electrons) for kind, electrons in shells if (kind, electrons) not in closed)
    return (count - 1) % 12 + 1


def _radius(element: Element) -> float | None:
    return float(covalent_radii()[element.Z]) if element.Z <= 96 else None  # Cordero's table ends at Cm


# The properties and ranges of CGCNN (Xie & Grossman, PRL 120, 145301 (2018), Table S1), with 8 periods.
GROUPS: tuple[Bins, ...] = (
    Bins("group", 18, lambda e: e.group, 1, 19),
    Bins("period", 8, lambda e: e.row, 1, 9),
    Bins("electronegativity", 10, lambda e: e.X, 0.5, 4.0),
    Bins("covalent radius (A)", 10, _radius, 0.25, 2.5),
    Bins("valence electrons", 12, _valence_electrons, 1, 13),
    Bins("first ionization energy (log eV)", 10, lambda e: e.ionization_energy, 1.3, 3.3, log=True),
    Bins("electron affinity (eV)", 10, lambda e: e.electron_affinity, -3.0, 3.7),
    Bins("block", 4, lambda e: "spdf".index(e.block), 0, 4),
    Bins("molar volume (log cm3/mol)", 10, lambda e: e.molar_volume, 1.5, 4.3, log=True),
)
NUM_FEATURES = sum(group.count for group in GROUPS)  # 92


@cache
def element_features() -> Tensor:
    """(119, 92) one-hot bins of nine elemental properties by Z, computed from pymatgen's element data.

    The layout follows CGCNN's atom features: see `GROUPS`. A missing value leaves its bins zero; row 0 is
    zero. Shared and cached: clone before writing to it.
    """
    from pymatgen.core import Element

    table = torch.zeros(MAX_Z + 1, NUM_FEATURES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns of every missing value
        for z in range(1, MAX_Z + 1):
            element, start = Element.from_Z(z), 0
            for group in GROUPS:
                index = group.index(element)
                if index is not None:
                    table[z, start + index] = 1.0
                start += group.count
    return table
