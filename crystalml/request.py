"""What is asked of a generator: cells of a formula or a chemical system, and what must hold for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, gcd
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from pymatgen.core import Composition, IStructure, Lattice, Structure
from pymatgen.symmetry.groups import SpaceGroup

from crystalml.composition import parse_composition, whole_number
from crystalml.convert import space_group_of
from crystalml.elements import atomic_number, symbol
from crystalml.errors import InputError, TooManyAtomsError
from crystalml.metrics.validity import MIN_DISTANCE
from crystalml.noise.rng import stable_seed
from crystalml.prototypes import PrototypeAtlas
from crystalml.prototypes.align import regroupings
from crystalml.prototypes.atlas import logsumexp
from crystalml.prototypes.substitute import SYMPREC
from crystalml.prototypes.wyckoff import can_place, group_of
from crystalml.sample.template import FormulaUnits

CompositionLike = str | Composition | Mapping[Any, float]
FormulaUnitsLike = int | range | Literal["auto"]

FORMULAS = 12  # likeliest compositions of a chemical system that are looked at
CLOSEST = MIN_DISTANCE**3 / 2**0.5  # A^3 an atom: the densest packing of spheres that the guard lets through
LARGEST = 20  # atoms in a cell of a chemical system, where nothing says otherwise


@dataclass(frozen=True)
class Cell:
    """One cell content to sample: `composition` of the whole cell, which holds z formula units."""

    composition: Composition
    z: int

    @property
    def numbers(self) -> list[int]:
        """Atomic numbers in the canonical order, so that "CsV3Sb5" and "Sb5V3Cs" draw the same crystals."""
        amounts = sorted(self.composition.items(), key=lambda item: item[0])  # electronegativity, then symbol
        return [element.Z for element, amount in amounts for _ in range(round(amount))]

    @property
    def formula(self) -> str:
        return self.composition.formula.replace(" ", "")

    @property
    def atoms(self) -> int:
        return round(self.composition.num_atoms)

    @property
    def content(self) -> dict[str, int]:
        return {str(name): round(n) for name, n in self.composition.get_el_amt_dict().items()}


@dataclass(frozen=True)
class Draw:
    """One sample: number `index` of a cell, at its `attempt`-th try. position: place in the answer."""

    cell: Cell
    position: int
    index: int
    attempt: int = 0

    def seed(self, seed: int) -> int:
        """A 63-bit seed from (seed, cell, index, attempt)."""
        return stable_seed(seed, self.cell.formula, self.index, self.attempt)


@dataclass(frozen=True)
class Fixed:
    """What a sample must have: a space group; or a lattice; or the lattice and some sites of a crystal."""

    space_group: int | None = None
    lattice: Lattice | None = None
    sites: Structure | None = None

    def __post_init__(self) -> None:
        if self.space_group is not None and not 1 <= self.space_group <= 230:
            raise InputError(f"space groups are numbered 1 to 230, not {self.space_group!r}")
        if self.sites is not None and not isinstance(self.sites, IStructure):
            raise InputError(f"fixed must be a pymatgen Structure, not {type(self.sites).__name__}")
        if sum(x is not None for x in (self.space_group, self.lattice, self.sites)) > 1:
            raise InputError("give one of space_group, lattice and fixed (which brings its lattice), not two")
        if self.sites is not None and not self.sites.is_ordered:
            raise InputError("the fixed sites are disordered; each must hold one element")

    @classmethod
    def of(cls, space_group: int | str | None, lattice: Lattice | ArrayLike | None, sites: Any) -> Fixed:
        """As users may write it: a group by its symbol, a lattice as its matrix. Raises InputError."""
        number = None if space_group is None else group_number(space_group)
        return cls(number, None if lattice is None else as_lattice(lattice), sites)

    @property
    def geometry(self) -> bool:
        """Whether coordinates or cell are given, which only diffusion can build on."""
        return self.lattice is not None or self.sites is not None

    def broken(self, structure: Structure) -> str:
        """Why the structure has not the space group asked for, by spglib; "" if it has, or none was."""
        if self.space_group is None:
            return ""
        found = space_group_of(structure, SYMPREC)
        if found is None:
            return "no space group found"
        return "" if found[1] == self.space_group else f"space group {found[1]}, not {self.space_group}"

    def describe(self) -> str:
        """For the provenance of what was made with it."""
        if self.space_group is not None:
            return f"space group {self.space_group}"
        if self.sites is not None:
            return f"lattice and {len(self.sites)} sites ({self.sites.formula.replace(' ', '')})"
        return "" if self.lattice is None else "lattice"

    def check(self, cell: Cell) -> None:
        """Raises InputError if the lattice has no room for the atoms, or fixed sites are none of them."""
        lattice = self.lattice if self.sites is None else self.sites.lattice
        if lattice is not None and not lattice.volume > cell.atoms * CLOSEST:
            raise InputError(
                f"a lattice of {lattice.volume:.3g} A^3 has no room for the {cell.atoms} atoms of "
                f"{cell.formula}, {MIN_DISTANCE} A apart; lengths are in Angstrom"
            )
        if self.sites is None:
            return
        wanted = cell.composition.get_el_amt_dict()
        for name, count in self.sites.composition.get_el_amt_dict().items():
            if count > wanted.get(name, 0):
                raise InputError(
                    f"{count:g} {name} are fixed but {cell.formula} has {wanted.get(name, 0):g}; the formula "
                    "counts all atoms of the cell, those that are fixed included"
                )


@dataclass(frozen=True)
class Group:
    """Cells that compete for `want` structures: one formula's, or one number of formula units'.

    owner: place of what was asked among all that was. drawn: the cell that diffusion draws.
    """

    owner: int
    cells: list[Cell]
    want: int
    drawn: Cell


@dataclass(frozen=True)
class Reader:
    """Turns what was asked into groups of cells. card: the network's. known_types: whether prototypes of the
    atlas take part; then cells may be as large as its largest.
    """

    atlas: PrototypeAtlas
    card: Mapping[str, Any]
    known_types: bool
    units: FormulaUnitsLike
    min_atoms: int
    max_atoms: int | None
    space_group: int | None = None

    def __post_init__(self) -> None:
        whole_number(self.min_atoms, 1, "min_atoms")
        if self.max_atoms is not None:
            whole_number(self.max_atoms, 1, "max_atoms")

    @property
    def limit(self) -> int | None:
        if self.max_atoms is not None:
            return self.max_atoms
        trained = self.card.get("max_atoms")
        if not self.known_types or trained is None:
            return trained
        return max(trained, max((sum(key) for key in self.atlas.tables.groups), default=0))

    def groups(self, item: CompositionLike, owner: int, n: int) -> list[Group]:
        """Raises CompositionError, UnknownElementError, TooManyAtomsError or InputError."""
        if is_system(item):
            assert isinstance(item, str)
            return self._system(item, owner, n)
        unit = parse(item, self.card.get("elements"))
        if self.units != "auto":
            cells = self.cells(unit, check_units(self.units))
            return [Group(owner, [cell], n, cell) for cell in cells]
        if unit.get_reduced_composition_and_factor()[1] > 1:
            (cell,) = self.cells(unit, [1])
            return [Group(owner, [cell], n, cell)]
        return [self._competing(unit, owner, n)]

    def cells(self, unit: Composition, units: Sequence[int]) -> list[Cell]:
        """Cells with those numbers of formula units, all of which must have an allowed number of atoms."""
        choices = [Cell(unit * z, z) for z in units]
        why = " (the largest in training)" if self.max_atoms is None else ""
        for cell in choices:
            if self.limit is not None and cell.atoms > self.limit:
                raise TooManyAtomsError(
                    f"{cell.formula} has {cell.atoms} atoms a cell, more than {self.limit}{why}. Ask for "
                    f"fewer formula units, or pass max_atoms={cell.atoms}."
                )
            if cell.atoms < self.min_atoms:
                raise InputError(
                    f"{cell.formula} has {cell.atoms} atoms a cell, fewer than min_atoms={self.min_atoms}"
                )
        return choices

    def _competing(self, unit: Composition, owner: int, n: int) -> Group:
        """All sizes of cell that known prototypes have; diffusion draws the most common one."""
        size = round(unit.num_atoms)
        least = -(-self.min_atoms // size)
        most = (size * least if self.limit is None else self.limit) // size
        if most < least:
            self.cells(unit, [least])  # says why
        statistics = FormulaUnits.from_dict(self.card.get("formula_units") or {})
        guess = max(least, min(most, statistics.guess(Cell(unit, 1).numbers)))
        sizes = {guess}
        if self.known_types:
            known = self.atlas.tables.groups
            every = {z: Cell(unit * z, z).content for z in range(least, most + 1)}
            sizes |= {z for z, content in every.items() if self.atlas.cell_content(content)[1] in known}
        if self.space_group is not None:
            trained = (self.card.get("max_atoms") or most * size) // size
            guess = self._placeable(unit, range(least, max(least, min(most, trained)) + 1), guess)
        return Group(owner, [Cell(unit * z, z) for z in sorted(sizes)], n, Cell(unit * guess, guess))

    def _placeable(self, unit: Composition, choices: range, guess: int) -> int:
        """Formula units nearest to the guess that the space group has sites for, or else the guess."""
        assert self.space_group is not None
        group = group_of(self.atlas, self.space_group)
        nearest = sorted(choices, key=lambda z: (abs(z - guess), z))
        return next((z for z in nearest if can_place(group, Cell(unit * z, z).numbers)), guess)

    def _system(self, system: str, owner: int, n: int) -> list[Group]:
        """The likeliest formulas, which share the n structures by what speaks for each."""
        if self.units != "auto":
            raise InputError(f"{system!r} is a chemical system; its formulas bring their formula_units")
        elements = system_elements(system)
        found = likely_formulas(
            elements, self.atlas, (self.min_atoms, LARGEST if self.limit is None else self.limit), FORMULAS
        )
        wants = portions(n, [share for _, share in found])
        units = [parse(unit, self.card.get("elements")) for unit, _ in found]
        return [self._competing(unit, owner, want) for unit, want in zip(units, wants, strict=True) if want]


def portions(n: int, shares: Sequence[float]) -> list[int]:
    """n in whole portions after their shares, which sum to 1: largest remainders."""
    exact = [n * share for share in shares]
    out = [int(x) for x in exact]
    order = sorted(range(len(exact)), key=lambda k: (out[k] - exact[k], k))
    for k in order[: n - sum(out)]:
        out[k] += 1
    return out


def is_system(value: CompositionLike) -> bool:
    """Whether a string names a chemical system, such as "Li-O"."""
    return isinstance(value, str) and "-" in value


def system_elements(system: str) -> list[int]:
    """Atomic numbers of "Li-Fe-O". Raises UnknownElementError, or InputError for repeated elements."""
    names = [part.strip() for part in system.split("-")]
    numbers = [atomic_number(name) for name in names]
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{system!r} names an element twice")
    return numbers


def likely_formulas(
    elements: Sequence[int], atlas: PrototypeAtlas, atoms: tuple[int, int], most: int
) -> list[tuple[Composition, float]]:
    """(reduced formula, share of the evidence) of the system's likeliest compositions, at most `most`.

    The evidence for a formula is the squared kernel summed over the atlas's crystals with its amounts, up to
    common factors: Li2O is likely as far as crystals of chemically like pairs are known as A2B. Squared,
    since the kernel was learned to tell structures of one formula apart: formulas take closer relatives.
    """
    evidence: dict[tuple[int, ...], float] = {}
    for size in range(atoms[0], atoms[1] + 1):
        for key in atlas.tables.sizes(size, len(elements)):
            tuples, _, weight = atlas.tables.stacked(key)
            for order in {tuple(elements[k] for k in p) for p in regroupings((0,) * len(elements))}:
                if any(a == b and x > y for a, b, x, y in zip(key, key[1:], order, order[1:], strict=False)):
                    continue  # equal amounts: one of the two orders is enough
                distance = atlas.similarity.distances[np.array(order)[None], tuples].sum(1)
                score = 2 * atlas.similarity.log_kernel(distance, len(order), np.sqrt(weight))
                amounts = dict(zip(order, key, strict=True))
                unit = gcd(*key)
                formula = tuple(amounts[z] // unit for z in elements)
                total = logsumexp([*score.tolist(), evidence.get(formula, -np.inf)])
                evidence[formula] = total
    if not evidence:
        raise InputError(
            f"the atlas knows no crystal of {len(elements)} elements with {atoms[0]} to {atoms[1]} atoms; "
            "ask for a formula, or for larger cells with max_atoms"
        )
    best = sorted(evidence.items(), key=lambda item: (-item[1], item[0]))[:most]
    total = logsumexp([value for _, value in best])
    out = []
    for formula, value in best:
        names = {symbol(z): n for z, n in zip(elements, formula, strict=True)}
        out.append((Composition(names), exp(value - total)))
    return out


def parse(value: CompositionLike, known: Sequence[str] | None) -> Composition:
    """A composition of elements that the model knows."""
    return parse_composition(value, known={atomic_number(s) for s in known} if known else None)


def check_units(units: Any) -> list[int]:
    """A number of formula units or a range of them as a list. Raises InputError."""
    values = list(units) if isinstance(units, range) else [units]
    if not values:
        raise InputError(f"formula_units is {units!r}, a range without numbers")
    return [whole_number(z, 1, "formula_units, unless 'auto' or a range of them,") for z in values]


def group_number(group: int | str) -> int:
    """A space group's number, or that of its symbol. Raises InputError."""
    if not isinstance(group, str):
        return whole_number(group, 1, "space_group, unless a symbol,")
    try:
        return int(SpaceGroup(group).int_number)
    except ValueError as error:
        raise InputError(
            f"{group!r} is no Hermann-Mauguin symbol of a space group: write 'Fm-3m' or 'P2_1/c', or a number"
        ) from error


def as_lattice(lattice: Lattice | ArrayLike) -> Lattice:
    """A Lattice, also of the rows of its matrix in Angstrom. Raises InputError."""
    if isinstance(lattice, Lattice):
        return lattice
    try:
        return Lattice(np.array(lattice, dtype=float).reshape(3, 3))
    except (TypeError, ValueError) as error:
        raise InputError(f"a lattice is a Lattice or a 3 x 3 matrix in Angstrom, not {lattice!r}") from error
