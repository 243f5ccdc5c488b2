"""The four filters of the Cambridge Structural Database, on molecules and networks built by hand."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from crystalml.convert import to_batch
from crystalml.datasets import csd
from crystalml.errors import UnsupportedError
from crystalml.testing import alpha_quartz, fcc

BOX = Lattice.orthorhombic(8, 9, 10)
CO2 = (["C", "O", "O"], [[0, 0, 0], [1.16, 0, 0], [-1.16, 0, 0]])
WATER = (["O", "H", "H"], [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])


def molecules(*parts: tuple[tuple[list[str], list[list[float]]], list[float]]) -> Structure:
    """Molecules put at Cartesian places."""
    symbols = [name for (names, _), _ in parts for name in names]
    points = [np.add(xyz, place) for (_, table), place in parts for xyz in table]
    return Structure(BOX, symbols, points, coords_are_cartesian=True, to_unit_cell=True)


def test_one_kind_of_molecule_is_kept_wherever_it_lies() -> None:
    assert csd.rejected(molecules((CO2, [4, 4, 4]))) is None
    assert csd.rejected(molecules((CO2, [4, 4, 4]), (CO2, [4, 8, 9]))) is None
    assert csd.rejected(molecules((CO2, [0, 0, 0]), (CO2, [7.9, 4.5, 5]))) is None  # through the faces


def test_two_kinds_are_two_components() -> None:
    assert csd.rejected(molecules((CO2, [4, 4, 4]), (WATER, [1, 7, 8]))) == "components"


def test_chains_layers_and_networks_are_polymers() -> None:
    chain = Structure(Lattice.orthorhombic(1.54, 8, 8), ["C"], [[0, 0, 0]])
    zigzag = Structure(
        Lattice.orthorhombic(2.5, 8, 8), ["C", "C"], [[0, 0, 0], [1.25, 0.9, 0]], coords_are_cartesian=True
    )
    for structure in (chain, zigzag):
        assert csd.rejected(structure) == "polymer"
    for crystal in (alpha_quartz(), fcc()):
        assert csd.bonded(crystal).polymer


def test_a_ring_across_a_face_is_no_polymer() -> None:
    angle = 2 * np.pi * np.arange(6) / 6
    ring = np.stack([1.4 * np.cos(angle), 1.4 * np.sin(angle), 0 * angle], 1)
    structure = Structure(BOX, ["C"] * 6, ring, coords_are_cartesian=True, to_unit_cell=True)
    found = csd.bonded(to_batch(structure, dtype=torch.float64))
    assert not found.polymer and found.formulas == ["C6"] and set(found.labels) == {0}


def test_disorder_and_nonsense() -> None:
    half = Structure(BOX, [{"C": 0.5, "N": 0.5}], [[0, 0, 0]])
    assert csd.rejected(half) == "disordered"
    assert csd.rejected(Structure(BOX, ["C", "O"], [[0, 0, 0], [0.01, 0, 0]])) == "invalid"
    assert csd.rejected(Structure(BOX, ["X0+"], [[0, 0, 0]])) == "invalid"
    assert csd.rejected(Structure(BOX, [], [])) == "invalid"


def test_without_the_api_it_says_where_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ccdc", None)
    with pytest.raises(UnsupportedError, match="CSD licence"):
        next(csd.entries())


def _fake_api(monkeypatch: pytest.MonkeyPatch, reader: object) -> None:
    package, io = ModuleType("ccdc"), ModuleType("ccdc.io")
    io.EntryReader = reader  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ccdc", package)
    monkeypatch.setitem(sys.modules, "ccdc.io", io)


def test_without_a_licence_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise RuntimeError(f"no licence for {name}")

    _fake_api(monkeypatch, refuse)
    with pytest.raises(UnsupportedError, match="no licence for CSD"):
        next(csd.entries())


class Entry:
    def __init__(self, identifier: str, structure: Structure | None) -> None:
        self.identifier, self.structure = identifier, structure
        self.has_3d_structure = structure is not None

    def to_string(self, kind: str) -> str:
        assert kind == "cif" and self.structure is not None
        return self.structure.to(fmt="cif")


def test_entries_are_packed_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    good = molecules((CO2, [4, 4, 4]))
    mixed = molecules((CO2, [4, 4, 4]), (WATER, [1, 7, 8]))
    large = molecules(*[(CO2, [4.0, 4.0 * k, 2.0 + k]) for k in range(2)])
    found = [Entry("A", good), Entry("B", mixed), Entry("C", None), Entry("D", large), Entry("E", good)]
    _fake_api(monkeypatch, lambda name: found)
    data, reasons = csd.pack_csd(max_atoms=5)
    assert len(data) == 2 and data.num_atoms.tolist() == [3, 3]
    assert dict(reasons) == {"kept": 2, "components": 1, "invalid": 1, "large": 1}
    assert len(csd.pack_csd(limit=1)[0]) == 1
