"""Moduli to learn from and to measure with: none of the tests' formulas, none of those held out."""

from pathlib import Path

import pytest
from ase.build import bulk

from crystalml.datasets.arrays import formulas
from crystalml.datasets.moduli import held_out, moduli, moduli_split
from crystalml.errors import InputError


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
    """Tungsten is held out, magnesium's cell too large, aluminium in a test, gold's moduli impossible."""
    root = _folder(tmp_path)
    names = formulas(moduli(root))
    assert names == ["W1", "Cu1", "Mg1", "Al1", "Au1"]
    assert held_out(names).tolist() == [True, False, False, False, False]
    train, val = moduli_split(root, "train", 1), moduli_split(root, "val", 1)
    assert train.numbers.tolist() == [29] and val.numbers.tolist() == [74]
    assert moduli_split(root, "train", 2).numbers.tolist() == [29, 12, 12]
    assert val.labels["bulk_modulus"] == pytest.approx(100, rel=1e-5)
    assert val.labels["shear_modulus"] == pytest.approx(10, rel=1e-5)
    with pytest.raises(InputError, match="train or val"):
        moduli_split(root, "test", 1)
    with pytest.raises(InputError, match="at most 0 atoms"):
        moduli_split(root, "val", 0)


def test_real_moduli(shared_data: Path) -> None:
    pytest.importorskip("pyarrow")
    val = moduli_split(shared_data, "val", 6)
    assert 500 < len(val) < 1500
    assert 1.5 < sorted(val.labels["bulk_modulus"] / val.labels["shear_modulus"])[len(val) // 2] < 3.5
