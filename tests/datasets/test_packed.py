from pathlib import Path

import numpy as np
import pytest
import torch

from crystalml.datasets.packed import PackedDataset, SizeBatches
from crystalml.errors import FileReadError, InputError
from crystalml.testing import rand_crystals


def _packed(seed: int = 0, count: int = 7) -> PackedDataset:
    x = rand_crystals(seed, count, dtype=torch.float32)
    energy = np.where(np.arange(count) % 2, np.nan, np.arange(count))
    return PackedDataset.from_arrays(
        x.numbers.numpy(), x.frac.numpy(), x.lattice.numpy(), x.num_atoms.numpy(), {"energy": energy}
    )


def test_crystals_survive_the_file(tmp_path: Path) -> None:
    x, path = rand_crystals(0, 7, dtype=torch.float32), tmp_path / "a.safetensors"
    _packed().save(path)
    data = PackedDataset.load(path)
    back = data[torch.arange(7)]
    assert torch.equal(back.numbers, x.numbers) and torch.equal(back.num_atoms, x.num_atoms)
    assert torch.equal(back.frac, x.frac) and torch.equal(back.lattice, x.lattice)
    assert torch.equal(back.labels["energy"][::2], torch.tensor([0.0, 2, 4, 6]))
    assert back.labels["energy"][1::2].isnan().all()
    assert data.numbers.dtype == torch.int8 and data.num_atoms.dtype == torch.int16
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_chosen_crystals_come_in_the_order_asked() -> None:
    data = _packed()
    part = data[[5, 0]]
    assert torch.equal(part.num_atoms, data.num_atoms[[5, 0]].long())
    assert torch.equal(part[1].frac, data[[0]].frac)
    assert torch.equal(data.select(torch.tensor([5, 0]))[[1]].frac, data[[0]].frac)


def test_a_batch_costs_its_own_crystals_and_not_the_whole_set(largest) -> None:
    data = _packed(0, 600)
    first = data[[5, 0]]
    with largest:
        again = data[[5, 0]]
    assert torch.equal(first.frac, again.frac) and 0 < largest.entries < 200


def test_no_crystals_are_a_batch_of_none() -> None:
    for none in ([], torch.tensor([], dtype=torch.long), slice(0, 0), torch.zeros(7, dtype=torch.bool)):
        part = _packed()[none]
        assert len(part) == len(part.frac) == len(part.labels["energy"]) == 0


def test_joined_sets_fill_missing_labels() -> None:
    a, b = _packed(0, 3), _packed(1, 2)
    bare = PackedDataset(b.numbers, b.frac, b.lattice, b.num_atoms, {})
    joined = PackedDataset.cat([a, bare])
    assert len(joined) == 5 and joined.labels["energy"][3:].isnan().all()
    assert torch.equal(joined[[3]].frac, b[[0]].frac)


def test_bad_files_and_ragged_arrays_are_refused(tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"not tensors")
    for path in (bad, tmp_path / "missing.safetensors"):
        with pytest.raises(FileReadError, match="crystalml pack"):
            PackedDataset.load(path)
    with pytest.raises(InputError, match="2 atoms"):
        PackedDataset.from_arrays(np.ones(3), np.zeros((3, 3)), np.zeros((1, 3, 3)), np.array([2]))


def test_batches_cover_every_crystal_once_within_budget() -> None:
    sizes = torch.randint(1, 40, (5000,), generator=torch.Generator().manual_seed(0))
    plan = SizeBatches(sizes, budget=4000, max_crystals=64, window=1000)
    batches = plan.epoch(0)
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(5000))
    padded = sum(len(b) * int(sizes[b].max()) ** 2 for b in batches)
    assert all(len(b) <= 64 and (len(b) * int(sizes[b].max()) ** 2 <= 4000) for b in batches)
    assert padded < 1.25 * int(sizes.square().sum())  # similar sizes share a batch


def test_epochs_differ_and_repeat_exactly() -> None:
    sizes = torch.randint(1, 20, (500,), generator=torch.Generator().manual_seed(0))
    plan = SizeBatches(sizes, budget=2000)
    assert all(torch.equal(a, b) for a, b in zip(plan.epoch(3), plan.epoch(3), strict=True))
    assert not torch.equal(torch.cat(plan.epoch(0)), torch.cat(plan.epoch(1)))


def test_one_crystal_over_budget_still_gets_its_batch() -> None:
    assert sorted(len(b) for b in SizeBatches(torch.tensor([50, 2, 2]), budget=100).epoch(0)) == [1, 2]


def _with_forces(seed: int, count: int) -> PackedDataset:
    x = rand_crystals(seed, count, dtype=torch.float32)
    g = np.random.default_rng(seed)
    arrays = (v.numpy() for v in (x.numbers, x.frac, x.lattice, x.num_atoms))
    stress, forces = g.normal(size=(count, 3, 3)), g.normal(size=(len(x.numbers), 3))
    return PackedDataset.from_arrays(*arrays, {"stress": stress}, {"forces": forces})


def test_forces_and_stresses_survive_file_choice_and_join(tmp_path: Path) -> None:
    data, path = _with_forces(0, 5), tmp_path / "f.safetensors"
    data.save(path)
    back = PackedDataset.load(path)
    assert torch.equal(back.site_labels["forces"], data.site_labels["forces"])
    assert torch.equal(back.labels["stress"], data.labels["stress"])
    whole, part = data[torch.arange(5)], data.select(torch.tensor([4, 2]))[[1]]
    assert torch.equal(part.site_labels["forces"], whole[[2]].site_labels["forces"])
    assert torch.equal(part.labels["stress"][0], data.labels["stress"][2])
    joined = PackedDataset.cat([_packed(1, 3), data])
    atoms = int(joined.num_atoms[:3].sum())
    assert joined.site_labels["forces"][:atoms].isnan().all() and joined.labels["stress"][:3].isnan().all()
    assert torch.equal(joined.site_labels["forces"][atoms:], data.site_labels["forces"])
    assert joined.labels["energy"][3:].isnan().all()


def test_half_precision_labels_come_back_as_float32(tmp_path: Path) -> None:
    data = _with_forces(0, 5)
    data.half("forces").save(tmp_path / "h.safetensors")
    half = PackedDataset.load(tmp_path / "h.safetensors")
    assert half.site_labels["forces"].dtype == torch.float16 and half.labels["stress"].dtype == torch.float32
    forces = half[torch.arange(5)].site_labels["forces"]
    assert forces.dtype == torch.float32
    torch.testing.assert_close(forces, data.site_labels["forces"], atol=1e-3, rtol=1e-3)


def test_batches_by_neighbours_hold_their_budget_and_pad_little() -> None:
    g = torch.Generator().manual_seed(0)
    sizes, neighbors = torch.randint(1, 30, (3000,), generator=g), 20 + 40 * torch.rand(3000, generator=g)
    batches = SizeBatches(sizes, 4000, 64, window=1000, neighbors=neighbors).epoch(0)
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(3000))
    pairs = [int(sizes[b].sum()) * float(neighbors[b].max()) for b in batches]
    assert max(pairs) <= 4000 and sum(pairs) < 1.1 * float((sizes * neighbors).sum())


def test_kinds_never_share_a_batch() -> None:
    sizes, kinds = torch.randint(1, 20, (500,)), torch.arange(500) % 3
    batches = SizeBatches(sizes, 2000, window=100, kinds=kinds).epoch(0)
    assert all(len(kinds[ids].unique()) == 1 for ids in batches)
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(500))


def test_processes_get_batches_of_one_kind_at_a_time() -> None:
    sizes, kinds = torch.randint(1, 20, (900,)), (torch.arange(900) % 4 == 0).long()
    plan = SizeBatches(sizes, 1000, window=300, kinds=kinds)
    together = plan.epoch(1, 3)
    assert len(together) % 3 == 0 and len(plan.epoch(1)) - len(together) <= 4
    assert all(len(kinds[torch.cat(together[i : i + 3])].unique()) == 1 for i in range(0, len(together), 3))
    assert all(torch.equal(a, b) for a, b in zip(together, plan.epoch(1, 3), strict=True))


@pytest.mark.parametrize("processes", [2, 4, 9])
def test_a_kind_of_fewer_batches_than_processes_is_learned_too(processes: int) -> None:
    sizes, kinds = torch.full((5000,), 8), torch.arange(5000) < 60
    plan = SizeBatches(sizes, 64 * 64, 256, kinds=kinds)
    for epoch in range(3):
        batches = plan.epoch(epoch, processes)
        assert set(range(60)) < set(torch.cat(batches).tolist())
        together = [batches[i : i + processes] for i in range(0, len(batches), processes)]
        assert all(len(part) == processes and len(kinds[torch.cat(part)].unique()) == 1 for part in together)
        assert sum(bool(kinds[part[0]].all()) for part in together) == 1
        assert all(torch.equal(a, b) for a, b in zip(batches, plan.epoch(epoch, processes), strict=True))
