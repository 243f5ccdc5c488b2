"""Neighbours against a brute-force sum over images, in ordinary, tiny and badly skewed cells."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.errors import CellError, NonFiniteError
from crystalml.geometry.neighbors import (
    min_distances,
    minkowski_reduce,
    nearest_neighbors,
    neighbor_list,
    neighbor_topology,
    select_topology,
)
from crystalml.testing import rand_crystals


def images(reach: int) -> Tensor:
    return torch.tensor(list(itertools.product(range(-reach, reach + 1), repeat=3)))


def brute(batch: CrystalBatch, reach: int) -> list[tuple[int, int, tuple[int, ...], float]]:
    """Every (i, j, k, distance) with k within reach, own zero image left out."""
    out, start = [], 0
    for x in batch.split():
        k = images(reach)
        delta = x.frac[None, :, None] - x.frac[:, None, None] + k  # i, j, image
        distance = torch.linalg.vector_norm(delta @ x.lattice[0], dim=-1)
        for i, j, m in itertools.product(range(len(x.frac)), range(len(x.frac)), range(len(k))):
            if i != j or k[m].any():
                out.append((start + i, start + j, tuple(k[m].tolist()), float(distance[i, j, m])))
        start += len(x.frac)
    return out


def crystals(seed: int, counts: list[int], skew: int = 0) -> CrystalBatch:
    g = torch.Generator().manual_seed(seed)
    lattice = (
        3 * torch.eye(3, dtype=torch.float64)
        + torch.randn(len(counts), 3, 3, generator=g, dtype=torch.float64) * 0.6
    )
    for _ in range(skew):  # unimodular: other rows, same lattice
        i, j = torch.randperm(3, generator=g)[:2].tolist()
        lattice[:, i] += int(torch.randint(1, 3, (), generator=g)) * lattice[:, j]
    frac = torch.rand(sum(counts), 3, generator=g, dtype=torch.float64)
    return CrystalBatch(torch.ones(sum(counts), dtype=torch.long), frac, lattice, torch.tensor(counts))


@pytest.mark.parametrize("seed", range(4))
def test_list_equals_brute_force(seed: int) -> None:
    batch, cutoff = crystals(seed, [1, 4, 2]), 3.7
    found = neighbor_list(batch, cutoff)
    ours = {
        (i, j, tuple(k))
        for i, j, k in zip(found.i.tolist(), found.j.tolist(), found.shift.tolist(), strict=True)
    }
    theirs = {(i, j, k) for i, j, k, d in brute(batch, 5) if d < cutoff}
    assert len(ours) == len(found.i)
    assert ours == theirs


def test_vectors_are_of_the_pairs() -> None:
    batch = crystals(7, [3, 2])
    found = neighbor_list(batch, 4.0)
    expected = batch.cart[found.j] + torch.einsum(
        "mi,mij->mj", found.shift.double(), batch.lattice[batch.index[found.i]]
    )
    torch.testing.assert_close(found.vector, expected - batch.cart[found.i])
    torch.testing.assert_close(found.distance, found.vector.norm(dim=-1))
    assert (found.distance < 4.0 + 1e-9).all()
    assert (found.i.diff() >= 0).all()


def test_list_of_a_batch_is_the_lists_of_its_crystals() -> None:
    batch = crystals(3, [2, 5, 1])
    whole = neighbor_list(batch, 3.0)
    parts = [neighbor_list(x, 3.0) for x in batch.split()]
    torch.testing.assert_close(whole.distance, torch.cat([part.distance for part in parts]))
    assert torch.equal(whole.j, torch.cat([p.j + o for p, o in zip(parts, batch.offsets, strict=True)]))


def test_pairs_of_chosen_crystals_are_those_found_in_them() -> None:
    batch = crystals(3, [2, 5, 1, 3])
    which = torch.tensor([3, 0, 2])
    found = select_topology(neighbor_topology(batch, 4.0), batch, which)
    for ours, theirs in zip(found, neighbor_topology(batch[which], 4.0), strict=True):
        assert torch.equal(ours, theirs)


def test_unwrapped_coordinates_give_the_same_distances() -> None:
    batch = crystals(5, [4])
    moved = batch.replace(frac=batch.frac + torch.tensor([[2.0, 0, 0], [0, -1, 0], [0, 0, 0], [5, 5, -3]]))
    ours, theirs = neighbor_list(batch, 3.5), neighbor_list(moved, 3.5)
    torch.testing.assert_close(ours.distance.sort().values, theirs.distance.sort().values)
    torch.testing.assert_close(theirs.vector.norm(dim=-1), theirs.distance)


def test_gradients() -> None:
    batch = crystals(11, [2, 3])

    def energy(frac: Tensor, lattice: Tensor) -> Tensor:
        d = neighbor_list(batch.replace(frac=frac, lattice=lattice), 4.0).distance
        return ((1 - d / 4.0).clamp(min=0) ** 3).sum()

    assert torch.autograd.gradcheck(
        energy, (batch.frac.clone().requires_grad_(), batch.lattice.clone().requires_grad_())
    )


def test_atoms_on_top_of_each_other_have_finite_gradients() -> None:
    frac = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    batch = CrystalBatch(torch.tensor([1, 1]), frac, 5 * torch.eye(3)[None].double(), torch.tensor([2]))
    found = neighbor_list(batch, 2.0)
    assert found.distance.tolist() == [0.0, 0.0]
    found.distance.sum().backward()
    assert frac.grad is not None
    assert frac.grad.isfinite().all()


def test_no_neighbours() -> None:
    batch = CrystalBatch(torch.tensor([1]), torch.zeros(1, 3), 9 * torch.eye(3)[None], torch.tensor([1]))
    found = neighbor_list(batch, 2.0)
    assert found.distance.shape == (0,)
    assert found.shift.shape == (0, 3)


def test_refuses_what_vesin_cannot_survive() -> None:
    batch = crystals(0, [2])
    with pytest.raises(NonFiniteError, match="NaN"):
        neighbor_list(batch.replace(frac=batch.frac * float("nan")), 3.0)
    with pytest.raises(CellError, match="collapsed"):
        neighbor_list(batch.replace(lattice=batch.lattice * 0), 3.0)
    with pytest.raises(CellError, match="collapsed"):
        neighbor_list(batch.replace(lattice=batch.lattice * 1e-3), 3.0)
    with pytest.raises(ValueError, match="cutoff"):
        neighbor_list(batch, -1.0)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), counts=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_min_distances_equal_brute_force(seed: int, counts: list[int]) -> None:
    batch = crystals(seed, counts)
    pairs = brute(batch, 4)
    owner = batch.index.tolist()
    expected = [min(d for i, _, _, d in pairs if owner[i] == k) for k in range(len(counts))]
    torch.testing.assert_close(min_distances(batch), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(10))
def test_min_distances_do_not_depend_on_the_choice_of_cell(seed: int) -> None:
    flat, skewed = crystals(seed, [1, 3]), crystals(seed, [1, 3], skew=12)
    inside = torch.linalg.solve(skewed.lattice[flat.index].mT, flat.cart[..., None])[..., 0]
    same = skewed.replace(frac=inside)
    assert skewed.lattice.norm(dim=-1).max() > 20  # badly skewed indeed
    torch.testing.assert_close(min_distances(same), min_distances(flat), rtol=1e-6, atol=1e-8)


def test_min_distances_sees_own_images() -> None:
    lattice = torch.diag(torch.tensor([0.7, 9.0, 9.0]))[None]
    batch = CrystalBatch(torch.tensor([6]), torch.rand(1, 3), lattice, torch.tensor([1]))
    torch.testing.assert_close(min_distances(batch), torch.tensor([0.7]))


def test_close_packing_reaches_the_bound() -> None:
    lattice = torch.tensor([[[0.0, 1, 1], [1, 0, 1], [1, 1, 0]]], dtype=torch.float64) * 1.8
    batch = CrystalBatch(torch.tensor([29]), torch.zeros(1, 3).double(), lattice, torch.tensor([1]))
    torch.testing.assert_close(min_distances(batch), torch.tensor([1.8 * 2**0.5], dtype=torch.float64))


def test_min_distances_of_wreckage() -> None:
    """What a young sampler may hand over: never a crash, never a value that looks healthy."""
    good = crystals(1, [2])
    wrecks = [
        good.replace(lattice=good.lattice * 0),
        good.replace(lattice=good.lattice * torch.tensor([[1.0], [1.0], [0.0]])),
        good.replace(lattice=torch.tensor([[[3.0, 0, 0], [6, 0, 0], [1, 1, 1]]], dtype=torch.float64)),
        good.replace(lattice=good.lattice * 1e-4),
        good.replace(frac=good.frac * 0),
        good.replace(lattice=good.lattice * float("nan")),
        good.replace(frac=good.frac + float("inf")),
        good,
    ]
    distances = min_distances(CrystalBatch.cat(wrecks))
    assert (distances[:5] < 1e-2).all()
    assert distances[5:7].isnan().all()
    assert distances[7] > 0.1


@pytest.mark.parametrize("seed", range(20))
def test_reduction_keeps_the_lattice_and_finds_its_shortest_vectors(seed: int) -> None:
    lattice = crystals(seed, [1, 1], skew=6).lattice
    reduced = minkowski_reduce(lattice)
    change = torch.linalg.solve(lattice.mT, reduced.mT).mT  # reduced = change @ lattice
    torch.testing.assert_close(change, change.round(), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(change).abs(), torch.ones(2).double())
    lengths = torch.linalg.vector_norm(reduced, dim=-1)
    k = images(3)
    vectors = k[k.any(-1)].double() @ reduced
    torch.testing.assert_close(torch.linalg.vector_norm(vectors, dim=-1).amin(-1), lengths[:, 0])
    assert (lengths.diff(dim=-1) >= 0).all()
    minkowski = torch.linalg.vector_norm(images(1).double() @ reduced, dim=-1)  # |c + x a + y b| >= |c|
    with_c = images(1)[:, 2] != 0
    assert (minkowski[:, with_c] >= lengths[:, 2:] - 1e-9).all()


@pytest.mark.parametrize("pbc", list(itertools.product([True, False], repeat=3)))
def test_free_directions_have_no_images(pbc: tuple[bool, ...]) -> None:
    """Against the brute-force list without the pairs that reach across a free face; atoms may lie outside."""
    batch, cutoff = crystals(1, [4, 3]), 3.7
    batch = batch.replace(frac=2.5 * (batch.frac - 0.3), labels={"pbc": torch.tensor([pbc] * 2)})
    found = neighbor_list(batch, cutoff)
    ours = {
        (i, j, tuple(k))
        for i, j, k in zip(found.i.tolist(), found.j.tolist(), found.shift.tolist(), strict=True)
    }
    theirs = {
        (i, j, k)
        for i, j, k, d in brute(batch, 7)
        if d < cutoff and all(p or s == 0 for p, s in zip(pbc, k, strict=True))
    }
    assert ours == theirs
    assert (found.distance < cutoff).all()


@pytest.mark.parametrize("count", [4, 12, 32])
def test_nearest_neighbors_are_the_first_of_all(count: int) -> None:
    """Against a plain search of all images; `reach` is the next one's distance, or the sphere's radius."""
    x = rand_crystals(3, 6, max_atoms=6)
    edges, reach = nearest_neighbors(x, count)
    k = torch.cartesian_prod(*[torch.arange(-5.0, 6.0, dtype=torch.float64)] * 3)
    for atom in range(len(x.numbers)):
        crystal = int(x.index[atom])
        others = (x.index == crystal).nonzero()[:, 0]
        delta = x.frac[others][:, None] + k - x.frac[atom]
        distance = (delta @ x.lattice[crystal]).norm(dim=-1).flatten().sort().values[1:]  # not itself
        found = edges.distance[edges.i == atom]
        radius = (1.5 * count * 3 / (4 * torch.pi) * x.volume[crystal] / x.num_atoms[crystal]) ** (1 / 3)
        inside = min(count, int((distance < radius).sum()))
        torch.testing.assert_close(found, distance[:inside], atol=1e-9, rtol=0)
        limit = distance[count] if distance[count] < radius else radius
        torch.testing.assert_close(reach[atom], limit, atol=1e-9, rtol=0)
    vector = torch.einsum(
        "mi,mij->mj", x.frac[edges.j] - x.frac[edges.i] + edges.shift, x.lattice[x.index[edges.i]]
    )
    torch.testing.assert_close(edges.vector, vector, atol=1e-9, rtol=0)
    torch.testing.assert_close(edges.vector.norm(dim=-1), edges.distance, atol=1e-9, rtol=0)


def test_nearest_neighbors_scale_with_the_crystal() -> None:
    """No length is built in: a cell a thousand times larger has the same neighbours."""
    x = rand_crystals(4, 4)
    small, near = nearest_neighbors(x, 10)
    large, far = nearest_neighbors(x.replace(lattice=1000 * x.lattice), 10)
    assert torch.equal(small.j, large.j) and torch.equal(small.shift, large.shift)
    torch.testing.assert_close(far, 1000 * near, rtol=1e-9, atol=0)
