"""A cell for what has none: free directions of slabs, wires and molecules."""

from __future__ import annotations

import torch
from torch import Tensor

MARGIN = 10.0  # Angstrom of vacuum on either side; free directions have no images, so any length will do


def enclose(points: Tensor, lattice: Tensor, pbc: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 3) positions in a cell (3, 3) that counts only along pbc (3,) -> (3, 3) cell, (n, 3) fractional.

    Periodic rows stay; the others become mutually orthogonal normals of them, long enough to hold all atoms
    with room to spare, the atoms moved to the middle. Right-handed where a free direction leaves the choice.
    """
    rows = lattice.clone()
    kept = lattice[pbc]
    # The trailing right singular vectors span what the periodic rows do not.
    normals = (
        torch.linalg.svd(kept, full_matrices=True).Vh[len(kept) :] if len(kept) else torch.eye(3).to(lattice)
    )
    middle = points.new_zeros(3)
    for row, normal in zip((~pbc).nonzero()[:, 0].tolist(), normals, strict=True):
        along = points @ normal
        length = along.max() - along.min() + 2 * MARGIN
        rows[row] = length * normal
        middle = middle + (0.5 * length - 0.5 * (along.max() + along.min())) * normal
    frac = torch.linalg.solve(rows.T, (points + middle).T).T
    if not pbc.all() and torch.linalg.det(rows) < 0:
        row = int((~pbc).nonzero()[0])
        rows[row] = -rows[row]
        frac[:, row] = 1 - frac[:, row]  # one length further along the axis: nothing there can tell
    return rows, frac
