"""Validity: known good and bad crystals, and a slow reading of the SMACT rule beside the fast one."""

import itertools
from math import gcd

import numpy as np
import pytest
from pymatgen.core.composition import Composition
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from crystalml.metrics.validity import has_fingerprint, is_valid, is_valid_composition, is_valid_structure

smact = pytest.importorskip("smact", reason="the composition test needs the extra `metrics`")


def rocksalt(a: float = 5.64) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_a_real_crystal_passes_everything() -> None:
    assert is_valid(rocksalt())


@pytest.mark.parametrize("gap", [0.49, 0.51])
def test_pairs_across_the_boundary_count(gap: float) -> None:
    a = 5.0
    structure = Structure(Lattice.cubic(a), ["Na", "Na"], [[0, 0, 0], [1 - gap / a, 0, 0]])
    assert is_valid_structure(structure) == (gap > 0.5)


@pytest.mark.parametrize("length", [0.49, 0.51])
def test_an_atom_and_its_own_image_count(length: float) -> None:
    """A distance matrix has zeros on its diagonal and would not see this."""
    skewed = Lattice([[length, 0, 0], [7 * length + 0.1, 8, 0], [0, 3, 9]])
    assert is_valid_structure(Structure(skewed, ["Na"], [[0, 0, 0]])) == (length > 0.5)


def test_volume_counts() -> None:
    assert not is_valid_structure(Structure(Lattice.orthorhombic(10, 0.6, 0.01), ["Na"], [[0, 0, 0]]))
    assert not is_valid_structure(Structure(Lattice([[5, 0, 0], [0, 5, 0], [5, 5, 1e-9]]), ["Na"], [[0] * 3]))


@pytest.mark.parametrize(
    ("formula", "valid"),
    [
        ("NaCl", True),
        ("CsV3Sb5", True),  # no neutral choice is needed: all metals pass
        ("Fe3O4", False),  # one state an element, as in CDVAE's script: magnetite's two irons do not fit
        ("Na2Cl", False),
        ("Si", True),
        ("Ni3Al", True),
        ("CuO", True),
        ("KrF2", True),
        ("HeO", False),  # helium has no oxidation states
        ("Ne2C", False),
        ("OF2", True),
    ],
)
def test_compositions(formula: str, valid: bool) -> None:
    assert is_valid_composition(Composition(formula)) == valid


def cdvae_rule(composition: Composition) -> bool:
    """CDVAE's smact_validity, choice by choice."""
    symbols = [element.symbol for element in composition]
    if len(symbols) == 1 or all(symbol in smact.metals for symbol in symbols):
        return True
    amounts = [int(composition[symbol]) for symbol in symbols]
    amounts = [amount // gcd(*amounts) for amount in amounts]
    elements = [smact.Element(symbol) for symbol in symbols]
    for states in itertools.product(*[element.oxidation_states_smact14 or [] for element in elements]):
        if sum(q * n for q, n in zip(states, amounts, strict=True)):
            continue
        cations = [e.pauling_eneg for e, q in zip(elements, states, strict=True) if q > 0]
        anions = [e.pauling_eneg for e, q in zip(elements, states, strict=True) if q < 0]
        if all(a is None or c is None or c < a for c in cations for a in anions):
            return True
    return False


def test_fast_rule_is_the_listing_of_all_choices() -> None:
    rng = np.random.default_rng(0)
    symbols = ["Li", "Fe", "Mn", "Pm", "O", "S", "N", "Cl", "H", "C", "P", "U", "Xe", "Ar", "V", "Sb", "Se"]
    seen = set()
    for _ in range(400):
        chosen = rng.choice(symbols, rng.integers(1, 5), replace=False)
        composition = Composition(dict(zip(chosen, rng.integers(1, 7, len(chosen)).tolist(), strict=True)))
        verdict = cdvae_rule(composition)
        seen.add(verdict)
        assert is_valid_composition(composition) == verdict, composition
    assert seen == {True, False}


def test_failing_neighbour_search_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_fingerprint(rocksalt())

    def fail(*_: object) -> None:
        raise ValueError("No Voronoi neighbors found")

    monkeypatch.setattr("pymatgen.analysis.local_env.CrystalNN.get_nn_data", fail)
    assert not has_fingerprint(rocksalt())
    assert not is_valid(rocksalt())
