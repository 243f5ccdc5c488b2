"""A small test set on disk: rock salts of several sizes, with energies."""

from pathlib import Path
from typing import Any

import pytest

SALTS = [(11, 17, 5.64), (19, 17, 6.29), (3, 9, 4.03), (12, 8, 4.21), (37, 53, 7.34)]


@pytest.fixture
def salts(tmp_path: Path) -> Path:
    """NaCl, KCl, LiF, MgO, RbI: primitive cells and, for every other one, the conventional cell."""
    pa = pytest.importorskip("pyarrow", reason="reading parquet needs pyarrow")
    import pyarrow.parquet as parquet

    fcc = [[0.0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    rows: list[dict[str, Any]] = []
    for i, (cation, anion, a) in enumerate(SALTS):
        if i % 2:
            frac = fcc + [[x + 0.5, y, z] for x, y, z in fcc]
            numbers, cell = [cation] * 4 + [anion] * 4, [a, 0, 0, 0, a, 0, 0, 0, a]
        else:
            frac, numbers = [[0.0, 0, 0], [0.5, 0.5, 0.5]], [cation, anion]
            cell = [0, a / 2, a / 2, a / 2, 0, a / 2, a / 2, a / 2, 0]
        rows.append(
            {
                "material_id": f"salt-{i}",
                "numbers": numbers,
                "frac_coords": [x for site in frac for x in site],
                "lattice": [float(x) for x in cell],
                "formation_energy_per_atom": None if i == 4 else -2.0,
            }
        )
    path = tmp_path / "salts.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path
