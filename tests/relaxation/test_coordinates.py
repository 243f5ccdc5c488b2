"""Forces in the coordinates of a relaxation are the gradient of the energy there."""

from __future__ import annotations

import pytest
import torch

from crystalml.relaxation.coordinates import Vector, begin, dot, longest, moved, physical, pulled_back
from crystalml.testing import rand_crystals


def some_step(x, size: float, seed: int = 0) -> Vector:
    g = torch.Generator().manual_seed(seed)
    atoms = size * torch.randn(x.frac.shape, generator=g, dtype=torch.float64)
    cell = size * torch.randn(x.lattice.shape, generator=g, dtype=torch.float64)
    return Vector(atoms, 0.5 * (cell + cell.mT))


def test_forces_are_slopes_far_from_the_start_too(toys):
    pairs = toys.Pairs()
    x = begin(toys.start())
    x = moved(x, some_step(x, 0.15))  # D is no longer the identity and does not commute with the stress
    force = pulled_back(x, physical(x, pairs(x), cell=True))
    for seed in (1, 2, 3):
        v = some_step(x, 1.0, seed)
        h = 1e-5
        up, down = (
            pairs(moved(x, v.scaled(x, torch.full((len(x),), s * h, dtype=torch.float64))))["energy"]
            for s in (1, -1)
        )
        torch.testing.assert_close((down - up) / (2 * h), dot(x, force, v), atol=1e-6, rtol=1e-6)


def test_steps_add_up_whatever_the_order():
    x = begin(rand_crystals(0))
    a, b = some_step(x, 0.1, 1), some_step(x, 0.1, 2)
    one, other, both = moved(moved(x, a), b), moved(moved(x, b), a), moved(x, a.plus(b))
    for y in (other, both):
        torch.testing.assert_close(one.lattice, y.lattice)
        delta = one.frac - y.frac
        assert float((delta - delta.round()).abs().max()) < 1e-12


def test_atoms_ride_along_with_the_cell():
    x = begin(rand_crystals(0))
    step = some_step(x, 0.2)
    after = moved(x, Vector(torch.zeros_like(step.atoms), step.cell))
    torch.testing.assert_close(after.frac, x.frac)
    assert float((after.lattice - x.lattice).abs().max()) > 0.01


@pytest.mark.parametrize("cell", [True, False])
def test_cells_of_slabs_feel_nothing(toys, cell):
    x = toys.start(3)
    x = x.replace(labels={"pbc": torch.tensor([[True] * 3, [True, True, False], [False] * 3])})
    pull = physical(x, toys.Pairs()(x), cell).cell
    assert bool(pull[0].any()) == cell and not pull[1:].any()


def test_longest_row_and_its_nan():
    x = rand_crystals(0, 2)
    v = Vector(torch.zeros_like(x.frac), torch.zeros_like(x.lattice))
    v.atoms[0] = torch.tensor([3.0, 4.0, 0.0])
    v.cell[1, 2, 2] = 7.0
    assert longest(x, v).tolist() == [5.0, 7.0]
    v.atoms[-1, 0] = torch.nan
    assert longest(x, v)[1].isnan() and longest(x, v)[0] == 5
