"""The hull table of the corpus: what goes in, and that the shipped one agrees with the Materials Project."""

from dataclasses import replace

import numpy as np
import pytest
from pymatgen.core import Composition

from crystalml.datasets.arrays import Arrays
from crystalml.metrics import crysdb_hull
from crystalml.metrics.stability import HullTable


def crystals(numbers: list[list[int]], energies: list[float]) -> Arrays:
    count = len(numbers)
    return Arrays(
        np.array([z for part in numbers for z in part], np.int8),
        np.zeros((sum(map(len, numbers)), 3), np.float32),
        np.tile(np.eye(3, dtype=np.float32), (count, 1, 1)),
        np.array([len(part) for part in numbers]),
        {"formation_energy_per_atom": np.array(energies, np.float32)},
        [f"id{i}" for i in range(count)],
    )


def test_both_splits_the_lowest_energy_and_nothing_without_one(monkeypatch) -> None:
    parts = {
        "train": crystals([[12, 8], [12, 8, 12, 8], [11, 17], [26, 8]], [-2.5, -3.0, -2.0, np.nan]),
        "val": crystals([[11, 17], [12, 12, 8]], [-2.1, -0.1]),
    }
    monkeypatch.setattr(crysdb_hull, "crysdb", lambda root, split: parts[split])

    def filled(data, root):
        energy = data.labels["formation_energy_per_atom"]
        return replace(data, labels={"formation_energy_per_atom_filled": energy})

    monkeypatch.setattr(crysdb_hull, "fill_energy", filled)
    table = crysdb_hull.crysdb_hull("nowhere", margin=10)
    assert table.energies == pytest.approx({"MgO": -3.0, "NaCl": -2.1, "Mg2O": -0.1}, abs=1e-6)
    assert table.card["crystals"] == 5 and "Materials Project" in table.card["attribution"]
    assert set(crysdb_hull.crysdb_hull("nowhere", margin=0.1).energies) == {"MgO", "NaCl"}


def test_the_shipped_hull_agrees_with_the_labels_of_the_materials_project(shared_data) -> None:
    """Energies above the hull of validation crystals, though some of their rivals are held out here."""
    pytest.importorskip("pyarrow")
    from crystalml.datasets.crysdb import ENERGY, crysdb

    data = crysdb(shared_data, "val", sources=("mp",))
    labels = data.labels["energy_above_hull"]
    rows = np.flatnonzero(np.isfinite(labels) & np.isfinite(data.labels[ENERGY]))
    data = data[np.random.default_rng(0).permutation(rows)[:150]]
    parts = np.split(data.numbers.astype(int), np.cumsum(data.num_atoms)[:-1])
    from crystalml.elements import symbol

    compositions = [Composition("".join(symbol(z) for z in part.tolist())) for part in parts]
    above = HullTable.default().above(compositions, data.labels[ENERGY])
    errors = np.abs(above - data.labels["energy_above_hull"])
    assert np.median(errors) < 0.005 and np.mean(errors < 0.05) > 0.9
