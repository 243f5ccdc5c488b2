"""Chemical formulas as whole atoms, and whole numbers of other things."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from crystalml.elements import atomic_number, symbol
from crystalml.errors import CompositionError, InputError, TooManyAtomsError, UnknownElementError

if TYPE_CHECKING:
    from pymatgen.core import Composition


def parse_composition(
    value: str | Composition | Mapping[object, float],
    *,
    max_atoms: int | None = None,
    known: Collection[int] | None = None,
) -> Composition:
    """A formula, Composition or {element: amount} -> a Composition of plain elements in whole amounts.

    Amounts are kept as given: "Na2Cl2" stays two formula units. Oxidation states and isotopes become their
    element. max_atoms: the most atoms allowed. known: the atomic numbers allowed.
    Raises CompositionError, UnknownElementError or TooManyAtomsError.
    """
    from pymatgen.core import Composition

    amounts: dict[str, float] = {}
    for z, amount in _amounts(value):
        if not math.isfinite(amount) or amount < 0:
            raise CompositionError(f"{value!r} asks for {amount} atoms of {symbol(z)}; give a whole number")
        if known is not None and z not in known:
            message = f"{symbol(z)} in {value!r} is not among the {len(known)} elements known here"
            raise UnknownElementError(message)
        amounts[symbol(z)] = amounts.get(symbol(z), 0) + amount
    whole = {name: round(amount) for name, amount in amounts.items() if amount > 0}
    if not whole:
        raise CompositionError(f"{value!r} holds no atoms; give a formula such as 'CsV3Sb5'")
    if any(abs(amounts[name] - whole[name]) > 1e-6 for name in whole):
        hint = Composition(amounts).get_integer_formula_and_factor()[0]
        raise CompositionError(
            f"{value!r} has fractional amounts; a cell holds whole atoms, for example {hint}"
        )
    if max_atoms is not None and sum(whole.values()) > max_atoms:
        raise TooManyAtomsError(f"{value!r} has {sum(whole.values())} atoms, at most {max_atoms} are allowed")
    return Composition(whole)


def whole_number(value: object, least: int, what: str) -> int:
    """The int that `value` is, of numpy's kinds too. Raises InputError, which starts with `what`."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise InputError(f"{what} must be a whole number, {least} or more, not {value!r}")
    return number


def _amounts(value: object) -> list[tuple[int, float]]:
    """(atomic number, amount) of every entry, as far as they can be told."""
    if isinstance(value, str):
        value = _parse_formula(value)
    if not isinstance(value, Mapping):
        message = f"cannot read a composition from {type(value).__name__} {value!r}"
        raise CompositionError(f"{message}; give a formula such as 'CsV3Sb5'")
    pairs = []
    for species, amount in value.items():
        try:
            number = float(amount)
        except (TypeError, ValueError, OverflowError) as error:
            raise CompositionError(
                f"{value!r}: the amount of {species} is {amount!r}, not a number"
            ) from error
        pairs.append((_species_number(species), number))
    return pairs


def _parse_formula(formula: str) -> Composition:
    from pymatgen.core import Composition

    for name in re.findall(r"[A-Z][a-z]*", formula):
        atomic_number(name)  # pymatgen would take X, Qq or Vac for dummy species
    try:
        return Composition(formula)
    except ValueError as error:
        raise CompositionError(
            f"{formula!r} is not a chemical formula ({error}); write it as 'CsV3Sb5'"
        ) from error


def _species_number(species: object) -> int:
    """The atomic number of an Element, a Species, a symbol with or without charge, or an atomic number."""
    from pymatgen.core import DummySpecies, get_el_sp

    try:
        found = get_el_sp(species)  # type: ignore[call-overload]
    except (ValueError, TypeError) as error:
        raise UnknownElementError(
            f"{species!r} is not a chemical element; use a symbol such as 'Na'"
        ) from error
    if isinstance(found, DummySpecies):
        raise UnknownElementError(f"{species!r} is not a chemical element; use a symbol such as 'Na'")
    return int(found.Z)
