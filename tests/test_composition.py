"""Formulas: whole atoms of real elements, or a typed error."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition, Element, Species

from crystalml.convert import parse_composition
from crystalml.elements import SYMBOLS
from crystalml.errors import CompositionError, InputError, TooManyAtomsError, UnknownElementError

quick = settings(derandomize=True, max_examples=50, deadline=None)
amounts = st.dictionaries(st.sampled_from(SYMBOLS[1:]), st.integers(1, 20), min_size=1, max_size=6)


@quick
@given(amounts)
def test_every_way_to_say_it_gives_the_same(content: dict[str, int]) -> None:
    expected = Composition(content)
    formula = "".join(f"{name}{count}" for name, count in content.items())
    by_species = {Element(name): float(count) for name, count in content.items()}
    for value in (content, formula, expected, by_species, expected.formula):
        found = parse_composition(value)
        assert found == expected
        assert all(isinstance(found[e], int | float) and found[e] == round(found[e]) for e in found)


@quick
@given(st.text(alphabet="ABCNOSXaclo()[]0123456789.+-· ", max_size=12))
def test_any_text_gives_whole_atoms_or_a_typed_error(text: str) -> None:
    try:
        found = parse_composition(text)
    except InputError:
        return
    assert found.num_atoms >= 1
    assert all(amount == int(amount) for amount in found.values())
    assert all(isinstance(e, Element) for e in found)


@pytest.mark.parametrize(
    ("value", "formula"),
    [
        ("CsV3Sb5", "Cs1 V3 Sb5"),
        ("(NH4)2SO4", "N2 H8 S1 O4"),
        ("Na2Cl2", "Na2 Cl2"),
        ("D2O", "H2 O1"),
        ({"D": 2, "H": 1, "O": 1}, "H3 O1"),
        ({11: 1, "Cl-": 1}, "Na1 Cl1"),
        ({Species("Fe", 2): 1, Species("Fe", 3): 2, "O": 4}, "Fe3 O4"),
        ({"Na": 1, "Cl": 0}, "Na1"),
        ({"Na": 0.9999999999, "Cl": 1}, "Na1 Cl1"),
    ],
)
def test_accepted(value: object, formula: str) -> None:
    assert dict(parse_composition(value)) == dict(Composition(formula))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("", CompositionError, "CsV3Sb5"),
        ({}, CompositionError, "no atoms"),
        ({"Na": 0}, CompositionError, "no atoms"),
        ("Li0.5CoO2", CompositionError, r"fractional.*Li\(CoO2\)2"),
        ({"Li": 0.5, "Co": 1}, CompositionError, "whole atoms"),
        ("Na-1", CompositionError, "negative"),
        ({"Na": -1}, CompositionError, "-1"),
        (Composition({"Na": 1, "Cl": -1}, allow_negative=True), CompositionError, "-1"),
        ({"Na": math.nan}, CompositionError, "nan"),
        ({"Na": math.inf}, CompositionError, "inf"),
        ({"Na": None}, CompositionError, "None"),
        ("NaQq", UnknownElementError, "Qq"),
        ("X2O", UnknownElementError, "'X'"),
        ({"X": 1}, UnknownElementError, "'X'"),
        ({"Foo": 1}, UnknownElementError, "Foo"),
        ({119: 1}, UnknownElementError, "119"),
        ("salt", CompositionError, "salt"),
        ("NaCl)", CompositionError, "formula"),
        (None, CompositionError, "NoneType"),
        (["Na", "Cl"], CompositionError, "list"),
    ],
)
def test_refused(value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_composition(value)  # type: ignore[arg-type]


def test_limits() -> None:
    with pytest.raises(TooManyAtomsError, match="4 atoms, at most 3"):
        parse_composition("Na2Cl2", max_atoms=3)
    assert parse_composition("Na2Cl2", max_atoms=4).num_atoms == 4
    with pytest.raises(UnknownElementError, match="Cl"):
        parse_composition("NaCl", known={11})
