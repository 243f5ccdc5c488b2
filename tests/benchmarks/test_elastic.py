"""Moduli by matcalc: right for a calculator whose moduli are known otherwise; scores mean what they say."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

from crystalml.benchmarks import elastic
from crystalml.datasets.moduli import FILES
from crystalml.errors import InputError


def test_moduli_are_those_of_the_energy() -> None:
    """K = V d^2E/dV^2 of copper by EMT, from energies alone."""
    if find_spec("matcalc") is None:  # importing it would ask a hub, which `_engine` forbids first
        pytest.skip("needs matcalc")
    atoms = bulk("Cu", a=3.59)  # EMT's own lattice constant, nearly
    atoms.calc = EMT()
    cell, volume = atoms.cell.array.copy(), atoms.get_volume()
    energies = []
    for scale in (0.99, 1.0, 1.01):
        atoms.set_cell(cell * scale ** (1 / 3), scale_atoms=True)
        energies.append(atoms.get_potential_energy())
    expected = (energies[0] - 2 * energies[1] + energies[2]) / (0.01 * volume) ** 2 * volume * 160.2177
    structure: Structure = AseAtomsAdaptor.get_structure(bulk("Cu", a=3.59))  # type: ignore[assignment]
    k, g, least = elastic._moduli(elastic._engine(EMT()), structure)
    assert k == pytest.approx(expected, rel=0.03)
    assert 0 < least < g < k


def files(root: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    (root / "properties").mkdir()
    ids, cells = ["a", "a", "b", "c", "d"], [3.6, 3.6, 4.0, 5.0, 4.1]
    for column, file in enumerate(FILES.values()):
        atoms = [1, 1, 1, 9, 1]
        pandas.DataFrame(
            {
                "material_id": ids,
                "target": [2.0 - column, 2.0 - column, 1.5 - column, 1.0, 1.0],
                "numbers": [[z] * n for z, n in zip([74, 74, 74, 74, 29], atoms, strict=True)],
                "frac_coords": [np.linspace(0, 0.9, 3 * n).tolist() for n in atoms],
                "lattice": [(np.eye(3) * a).flatten().tolist() for a in cells],
                "n_atoms": atoms,
            }
        ).to_parquet(root / "properties" / file)


def test_targets_come_once_small_and_held_out(tmp_path: Path) -> None:
    files(tmp_path)
    crystals, truth = elastic._targets(tmp_path, 10, 8, 0)
    order = np.argsort([-row[0] for row in truth])
    assert len(crystals) == 2
    np.testing.assert_allclose(truth[order], [[100, 10], [10**1.5, 10**0.5]], rtol=1e-5)
    assert crystals[order[0]].volume == pytest.approx(3.6**3, rel=1e-5)
    with pytest.raises(InputError, match="at most 0"):
        elastic._targets(tmp_path, 10, 0, 0)


def test_scores_count_what_is_there(tmp_path: Path, tiny_potential, monkeypatch) -> None:
    """One crystal twice too stiff, one unstable: its modulus below zero counts as 1 GPa."""
    files(tmp_path)
    answers = {3.6: (200.0, 10.0, 5.0), 4.0: (-3.0, 10**0.5, -1.0)}
    monkeypatch.setattr(elastic, "_engine", lambda calculator: None)
    monkeypatch.setattr(elastic, "_moduli", lambda engine, crystal: answers[round(crystal.lattice.a, 1)])
    result = elastic.run(tmp_path, tiny_potential(), out=tmp_path / "e.json", device="cpu", progress=False)
    assert result["stable"]["mean"] == 0.5 and result["failed"] == 0
    k, g = result["moduli"]["K"], result["moduli"]["G"]
    assert k["log10_mae"]["mean"] == pytest.approx((np.log10(2) + 1.5) / 2, abs=1e-5)
    assert k["mae_gpa"]["mean"] == pytest.approx((100 + 10**1.5 - 1) / 2, abs=1e-3)
    assert k["within_25_percent"]["mean"] == 0 and g["within_25_percent"]["mean"] == 1
    assert k["crystals"] == 2 == result["moduli"]["K cubic"]["crystals"] and "K other" not in result["moduli"]
    assert g["median_ratio"] == pytest.approx(1, abs=1e-5) and (tmp_path / "e.json").exists()
