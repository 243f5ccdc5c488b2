"""The list that runs on accelerators, tried here on the CPU, against vesin's."""

import pytest
import torch

from crystalml.geometry import images
from crystalml.geometry.images import candidates, image_pairs
from crystalml.geometry.neighbors import neighbor_list
from crystalml.testing import rand_crystals


@pytest.mark.parametrize("pbc", [[True, True, True], [True, False, True], [False, False, False]])
@pytest.mark.parametrize("cutoff", [2.5, 5.0])
def test_both_lists_hold_the_same_pairs_in_order(pbc: list[bool], cutoff: float) -> None:
    x = rand_crystals(0, 6)
    x = x.replace(labels={"pbc": torch.tensor([pbc] * 6)})
    skew = torch.tensor([[1.0, 2, 0], [0, 1, 0], [-1, 0, 1]], dtype=x.dtype)
    if all(pbc):
        frac = x.frac @ torch.linalg.inv(skew)
        x = x.replace(lattice=skew @ x.lattice, frac=frac - frac.floor())
    reach, counts = candidates(x.lattice, x.num_atoms, x.pbc, cutoff)
    i, j, shift = image_pairs(x.frac, x.lattice, x.num_atoms, reach, cutoff)
    expected = neighbor_list(x, cutoff)
    assert (i.diff() >= 0).all() and len(i) <= int(counts.sum())
    ours, theirs = (
        set(zip(*(part.tolist() for part in (i, j)), map(tuple, shift.tolist()), strict=True)),
        set(zip(expected.i.tolist(), expected.j.tolist(), map(tuple, expected.shift.tolist()), strict=True)),
    )
    assert ours == theirs and len(i) == len(theirs)


def test_many_candidates_are_tried_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch, largest) -> None:
    """Memory is bounded by the part, and parts that end within a crystal change nothing."""
    x = rand_crystals(0, 6)
    reach, counts = candidates(x.lattice, x.num_atoms, x.pbc, 4.0)
    whole = image_pairs(x.frac, x.lattice, x.num_atoms, reach, 4.0)
    monkeypatch.setattr(images, "AT_ONCE", 997)
    with largest:
        parts = image_pairs(x.frac, x.lattice, x.num_atoms, reach, 4.0)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    assert counts.sum() > 5 * 997 and largest.entries <= max(9 * 997, whole[2].numel())
