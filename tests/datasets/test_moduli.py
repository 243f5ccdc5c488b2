"""Moduli to learn from: which crystals qualify, and how symmetry lets their atoms answer a strain."""

from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from pymatgen.core import Lattice, Structure

from crystalml.datasets.arrays import Array
from crystalml.datasets.moduli import cubic_moduli, cubic_response, formulas, held_out, moduli
from crystalml.errors import InputError


def _response(atoms):
    return cubic_response(atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)


def _turned(atoms, seed: int = 0):
    """The same crystal standing anywhere in space."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    atoms.set_cell(atoms.cell.array @ q, scale_atoms=True)
    return atoms


def test_the_cube_stands_along_the_axes() -> None:
    found = _response(_turned(bulk("NaCl", "rocksalt", a=5.6)))
    assert found is not None
    lengths = np.sort(np.abs(found.lattice), axis=1)  # fcc's primitive vectors: two halves of the edge
    np.testing.assert_allclose(lengths, [[0, 2.8, 2.8]] * 3, atol=1e-6)


@pytest.mark.parametrize(
    "atoms",
    [bulk("NaCl", "rocksalt", a=5.6), bulk("Cu"), bulk("W"), bulk("CsCl", "cesiumchloride", a=4.1)],
    ids=str,
)
def test_symmetric_sites_hold_their_atoms(atoms) -> None:
    found = _response(_turned(atoms))
    assert found is not None and not found.internal.any()


def test_tetrahedral_sites_move_against_each_other() -> None:
    """Silicon under a shear yz: its two atoms part along x, as Kleinman's parameter describes."""
    for atoms in (bulk("Si"), bulk("GaAs", "zincblende", a=5.75)):
        found = _response(_turned(atoms))
        assert found is not None
        np.testing.assert_allclose(np.abs(found.internal[:, 0]), 0.5**0.5, atol=1e-6)
        np.testing.assert_allclose(found.internal[:, 1:], 0, atol=1e-6)
        assert found.internal.sum() == pytest.approx(0, abs=1e-6)


def test_fluorines_of_fluorite_move_and_calcium_does_not() -> None:
    found = _response(_turned(bulk("CaF2", "fluorite", a=5.5)))
    assert found is not None
    assert np.abs(found.internal[0]).max() < 1e-6 and np.abs(found.internal[1:, 0]).min() > 0.7


def test_what_is_not_cubic_or_has_more_freedom_is_left_out() -> None:
    assert _response(bulk("Mg")) is None
    pyrite = Structure.from_spacegroup("Pa-3", Lattice.cubic(5.4), ["Fe", "S"], [[0, 0, 0], [0.385] * 3])
    half = Structure.from_spacegroup(
        "F-43m", Lattice.cubic(5.9), ["Li", "Mg", "N"], [[0, 0, 0], [0.25] * 3, [0.5] * 3]
    )  # three tetrahedral sites: two ways against each other
    for crystal in (pyrite, half):
        numbers: Array = np.array(crystal.atomic_numbers)
        assert cubic_response(crystal.lattice.matrix, crystal.frac_coords, numbers) is None


def _folder(root: Path) -> Path:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    kinds = [bulk("W"), bulk("Cu"), bulk("Mg"), bulk("Al"), bulk("Au")]  # tungsten is held out
    geometry = {
        "numbers": [a.numbers.tolist() for a in kinds],
        "frac_coords": [a.get_scaled_positions().flatten().tolist() for a in kinds],
        "lattice": [a.cell.array.flatten().tolist() for a in kinds],
        "material_id": list("abcde"),
    }
    for folder in ("properties", "tests"):
        (root / folder).mkdir()
    for column, name in enumerate(("kvrh", "gvrh")):
        table = pandas.DataFrame(geometry | {"target": [2.0 - column, 1.9, 1.5, 1.8, 5.0]})
        table.to_parquet(root / "properties" / f"matbench_log_{name}.parquet")
    for name in ("mp_20", "mpts_52"):
        pandas.DataFrame(geometry)[3:4].to_parquet(root / "tests" / f"{name}_test.parquet")
    return root


def test_tests_held_out_crystals_and_failures_teach_nothing(tmp_path: Path) -> None:
    """Of five, tungsten is held out, magnesium no cube, aluminium in a test, gold's moduli impossible."""
    root = _folder(tmp_path)
    names = formulas(moduli(root))
    assert names == ["W1", "Cu1", "Mg1", "Al1", "Au1"]
    assert held_out(names).tolist() == [True, False, False, False, False]
    train, val = cubic_moduli(root), cubic_moduli(root, "val")
    assert train.numbers.tolist() == [29] and val.numbers.tolist() == [74]
    assert float(val.labels["bulk_modulus"]) == pytest.approx(100, rel=1e-5)
    assert float(val.labels["shear_modulus"]) == pytest.approx(10, rel=1e-5)
    with pytest.raises(InputError, match="train or val"):
        cubic_moduli(root, "test")


def test_real_moduli(shared_data: Path) -> None:
    pytest.importorskip("pyarrow")
    val = cubic_moduli(shared_data, "val")
    assert 500 < len(val) < 1000
    ratio = val.labels["bulk_modulus"] / val.labels["shear_modulus"]
    assert 1.5 < ratio.median() < 3.5
