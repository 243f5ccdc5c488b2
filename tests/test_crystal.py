"""The batch keeps what belongs together: labels of crystals and of atoms, and which directions repeat."""

import torch

from crystalml.crystal import CrystalBatch
from crystalml.testing import rand_crystals


def _labelled(seed: int, count: int) -> CrystalBatch:
    x = rand_crystals(seed, count)
    places = torch.arange(len(x.numbers))
    forces = torch.stack([places, places + 0.5, -places], -1).double()
    return x.replace(labels={"energy": torch.arange(count).double()}, site_labels={"forces": forces})


def test_labels_of_atoms_follow_their_atoms() -> None:
    x = _labelled(0, 5)
    chosen = x[[3, 1]]
    rows = torch.cat([(x.index == 3).nonzero()[:, 0], (x.index == 1).nonzero()[:, 0]])
    assert torch.equal(chosen.site_labels["forces"], x.site_labels["forces"][rows])
    back = CrystalBatch.cat(x.split())
    assert torch.equal(back.site_labels["forces"], x.site_labels["forces"])
    assert x.to(dtype=torch.float32).site_labels["forces"].dtype == torch.float32
    bare = x.replace(site_labels={})
    assert CrystalBatch.cat([x, bare]).site_labels == {}


def test_crystals_repeat_in_all_directions_unless_they_say_otherwise() -> None:
    x = _labelled(0, 2)
    assert x.pbc.all() and x.pbc.shape == (2, 3)
    slab = x.replace(labels={"pbc": torch.tensor([[True, True, False]] * 2)})
    both = CrystalBatch.cat([x, slab])
    assert both.pbc.tolist() == [[True] * 3] * 2 + [[True, True, False]] * 2
    assert "energy" not in both.labels
    assert slab.to(dtype=torch.float32).pbc.dtype == torch.bool


def test_no_crystals_are_a_batch_of_none() -> None:
    x = _labelled(0, 3)
    for none in (x[[]], x[torch.tensor([], dtype=torch.long)], x[:0], x[x.num_atoms < 0]):
        assert len(none) == len(none.numbers) == len(none.index) == 0 and none.lattice.shape == (0, 3, 3)
        assert none.site_labels["forces"].shape == (0, 3) and none.labels["energy"].shape == (0,)
    joined = CrystalBatch.cat([x[[]], x])
    assert torch.equal(joined.frac, x.frac) and torch.equal(joined.num_atoms, x.num_atoms)
