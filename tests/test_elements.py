"""Element table: the layout, the known rows, and that no two elements look alike."""

import subprocess
import sys

import pytest
import torch

from crystalml import elements
from crystalml.elements import GROUPS, MAX_Z, NUM_FEATURES, covalent_radii, element_features
from crystalml.errors import UnknownElementError


def bins(z: int) -> dict[str, int | None]:
    """The chosen bin of each group, None where the group is empty."""
    out, start = {}, 0
    for group in GROUPS:
        row = element_features()[z, start : start + group.count]
        out[group.name] = int(row.argmax()) if row.any() else None
        start += group.count
    return out


def test_layout() -> None:
    table = element_features()
    assert NUM_FEATURES == 92
    assert table.shape == (119, 92)
    assert table.dtype == torch.float32
    assert not table[0].any()
    assert set(table.unique().tolist()) == {0.0, 1.0}
    start = 0
    for group in GROUPS:  # one-hot or empty, never two bins
        assert table[:, start : start + group.count].sum(1).max() == 1
        start += group.count


def test_iron_and_oxygen_by_hand() -> None:
    # Fe: group 8, period 4, X 1.83, r 1.32 A, 3d6 4s2, I 7.90 eV, A 0.15 eV, d, 7.09 cm3/mol
    assert list(bins(26).values()) == [7, 3, 3, 4, 7, 3, 4, 2, 1]
    # O: group 16, period 2, X 3.44, r 0.66 A, 2s2 2p4, I 13.6 eV, A 1.46 eV, p, 17.36 cm3/mol
    assert list(bins(8).values()) == [15, 1, 8, 1, 5, 6, 6, 1, 4]


@pytest.mark.parametrize(
    ("name", "count"),
    [("H", 1), ("Ga", 3), ("Pb", 4), ("Cu", 11), ("Zn", 12), ("Yb", 2), ("Hf", 4), ("Ho", 1)],
)
def test_valence_electrons(name: str, count: int) -> None:
    assert bins(elements.atomic_number(name))["valence electrons"] == count - 1


def test_missing_values_leave_the_bin_empty() -> None:
    assert bins(2)["electronegativity"] is None  # helium
    assert bins(118)["molar volume (log cm3/mol)"] is None


def test_no_two_elements_share_a_row() -> None:
    table = element_features()[1:104]  # past lawrencium too little is known to tell them apart
    assert torch.unique(table, dim=0).shape[0] == 103


def test_symbols_round_trip() -> None:
    assert all(elements.atomic_number(elements.symbol(z)) == z for z in range(1, MAX_Z + 1))
    assert elements.atomic_number("D") == elements.atomic_number("T") == 1


def test_symbols_agree_with_ase() -> None:
    from ase.data import chemical_symbols

    assert list(elements.SYMBOLS[1:]) == chemical_symbols[1:119]


@pytest.mark.parametrize("z", [0, -1, 119])
def test_no_such_number(z: int) -> None:
    with pytest.raises(UnknownElementError, match=str(z)):
        elements.symbol(z)


@pytest.mark.parametrize("name", ["X", "", "Qq", "na"])
def test_no_such_symbol(name: str) -> None:
    with pytest.raises(UnknownElementError, match="symbol"):
        elements.atomic_number(name)


def test_radii() -> None:
    radii = covalent_radii()
    assert radii.shape == (119,)
    assert radii[6] == pytest.approx(0.76)
    assert radii[55] == pytest.approx(2.44)


def test_import_leaves_pymatgen_and_ase_alone() -> None:
    code = "import sys, crystalml.elements; sys.exit(bool({'pymatgen', 'ase'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
