"""Primitive cells: one crystal, one answer, whatever cell it came in."""

import itertools

import pytest
import torch

from crystalml.crystal import CrystalBatch
from crystalml.geometry.neighbors import neighbor_list
from crystalml.geometry.torus import wrap
from crystalml.models.fourierframenet import FourierFrameNetConfig
from crystalml.primitive import primitive_cells
from crystalml.testing import REFERENCE_CRYSTALS, alpha_quartz, bcc, rand_crystals


def supercell(x: CrystalBatch, times: tuple[int, int, int]) -> CrystalBatch:
    steps = torch.tensor(list(itertools.product(*map(range, times))), dtype=x.dtype)
    size = torch.tensor(times, dtype=x.dtype)
    frac = ((x.frac[None] + steps[:, None]) / size).flatten(0, 1)
    return CrystalBatch(
        x.numbers.repeat(len(steps)), frac, x.lattice * size[:, None], x.num_atoms * len(steps)
    )


def distances(x: CrystalBatch, owner: torch.Tensor | None = None) -> torch.Tensor:
    """(n, 12) sorted distances from each atom, or from the atom that stands for it: they tell sites apart."""
    pairs = neighbor_list(x, 6.0)
    rows = [pairs.distance[pairs.i == i].sort().values[:12] for i in range(len(x.numbers))]
    table = torch.stack(rows)
    return table if owner is None else table[owner]


@pytest.mark.parametrize("name", REFERENCE_CRYSTALS)
def test_supercells_come_back(name: str) -> None:
    x = REFERENCE_CRYSTALS[name]()
    small, _ = primitive_cells(x)
    turned = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=x.dtype)  # another choice of axes
    for large in (supercell(x, (2, 1, 3)), x.replace(lattice=turned @ x.lattice, frac=x.frac @ turned.T)):
        found, owner = primitive_cells(large)
        assert torch.equal(found.num_atoms, small.num_atoms)
        torch.testing.assert_close(found.volume, small.volume)
        assert torch.linalg.det(found.lattice) > 0
        assert torch.equal(found.numbers[owner], large.numbers)
        torch.testing.assert_close(distances(found, owner), distances(large), rtol=0, atol=1e-6)


def test_each_crystal_of_a_batch_gets_its_own_and_handedness_stays() -> None:
    x = CrystalBatch.cat([bcc(), alpha_quartz(), rand_crystals(0, 1), alpha_quartz(mirror=True)])
    found, owner = primitive_cells(x)
    assert found.num_atoms.tolist() == [1, 9, int(x.num_atoms[2]), 9]
    assert torch.equal(found.index[owner], x.index)
    torch.manual_seed(0)
    net = FourierFrameNetConfig(16, 1, 0, 2, 4, 8, 8, 8).build().double()  # knows hands, not cells
    for k in (1, 3):
        torch.testing.assert_close(net(found[k]).graph, net(x[k]).graph, rtol=0, atol=1e-9)
    assert (net(x[1]).graph - net(x[3]).graph).abs().max() > 1e-5


def test_atoms_that_merely_resemble_each_other_are_kept() -> None:
    x = supercell(bcc(), (2, 1, 1))
    moved = x.replace(frac=wrap(x.frac + torch.tensor([[0.02, 0, 0]] + [[0.0] * 3] * 3, dtype=x.dtype)))
    assert primitive_cells(x)[0].num_atoms.tolist() == [1]
    assert primitive_cells(moved)[0].num_atoms.tolist() == [4]


@pytest.mark.parametrize("name", REFERENCE_CRYSTALS)
def test_what_is_a_repetition_within_symprec_is_one(name: str) -> None:
    """Cells are sorted out before spglib sees them, but none whose atoms are merely not quite in place."""
    x = REFERENCE_CRYSTALS[name]()
    large = supercell(x, (1, 3, 1))
    torch.manual_seed(0)
    noise = 0.0005 * torch.randn(len(large.numbers), 3, dtype=x.dtype)  # Angstrom, of 0.01
    moved = large.replace(frac=wrap(large.frac + noise @ torch.linalg.inv(large.lattice[0])))
    assert torch.equal(primitive_cells(moved)[0].num_atoms, primitive_cells(x)[0].num_atoms)
