"""Boxes for slabs, wires and molecules keep every distance and leave room."""

import itertools

import pytest
import torch

from crystalml.geometry.box import MARGIN, enclose


@pytest.mark.parametrize("pbc", list(itertools.product([True, False], repeat=3)))
def test_positions_only_move_as_a_whole(pbc: tuple[bool, ...]) -> None:
    g = torch.Generator().manual_seed(0)
    points = 6 * torch.randn(5, 3, generator=g, dtype=torch.float64)
    lattice = 4 * torch.eye(3, dtype=torch.float64) + torch.randn(3, 3, generator=g, dtype=torch.float64)
    flags = torch.tensor(pbc)
    cell, frac = enclose(points, lattice * flags[:, None], flags)
    assert torch.equal(cell[flags], lattice[flags])
    moved = frac @ cell - points
    torch.testing.assert_close(moved, moved[:1].expand(5, 3))
    free = frac[:, ~flags]
    heights = torch.linalg.inv(cell).norm(dim=0).reciprocal()[~flags]
    assert (free * heights >= MARGIN - 1e-9).all() and ((1 - free) * heights >= MARGIN - 1e-9).all()
    if not all(pbc):
        assert torch.linalg.det(cell) > 0


def test_one_atom_gets_a_box() -> None:
    none = torch.tensor([False] * 3)
    cell, frac = enclose(torch.tensor([[100.0, 0, 0]]), torch.zeros(3, 3), none)
    torch.testing.assert_close(cell, 2 * MARGIN * torch.eye(3))
    torch.testing.assert_close(frac, torch.full((1, 3), 0.5))
