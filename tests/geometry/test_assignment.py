import torch

from crystalml.crystal import CrystalBatch
from crystalml.geometry.assignment import nearest_way
from crystalml.geometry.torus import logmap, remove_mean, wrap
from crystalml.testing import alpha_quartz, perovskite, rand_crystals


def _length(x: CrystalBatch, way: torch.Tensor) -> torch.Tensor:
    """(b,) summed squared Cartesian lengths of a crystal's displacements, each crystal's mean removed."""
    square = (remove_mean(way, x.index, x.num_atoms)[:, None] @ x.lattice[x.index]).square().sum((-1, -2))
    return torch.zeros(len(x), dtype=way.dtype).index_add(0, x.index, square)


def test_small_displacements_are_undone() -> None:
    x = CrystalBatch.cat([alpha_quartz(), perovskite()])
    g = torch.Generator().manual_seed(0)
    noise = remove_mean(0.02 * torch.randn(x.frac.shape, generator=g, dtype=x.dtype), x.index, x.num_atoms)
    torch.testing.assert_close(nearest_way(x, wrap(x.frac + noise)), -noise)


def test_it_leads_to_the_crystal_and_keeps_elements_apart() -> None:
    """Following the way gives the crystal, shifted: the same atoms on the same sites, each site once."""
    x = alpha_quartz()
    start = torch.rand(x.frac.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    way = nearest_way(x, start, rounds=30)
    end = start + way
    shift = (end[0] - x.frac)[x.numbers == x.numbers[0]]  # by one of the sites of the first atom's element
    for one in shift:
        off = logmap(end[:, None] - x.frac - one).abs().amax(-1) < 1e-6
        same = x.numbers[:, None] == x.numbers
        if (off & same).sum(0).eq(1).all() and (off & same).sum(1).eq(1).all():
            return
    raise AssertionError("what comes out is another crystal")


def test_no_way_is_longer_than_going_home() -> None:
    x = rand_crystals(3, 20)
    start = torch.rand(x.frac.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    home = _length(x, logmap(x.frac - start))
    assert (_length(x, nearest_way(x, start)) <= home + 1e-9).all()


def test_company_does_not_matter() -> None:
    x = CrystalBatch.cat([alpha_quartz(), perovskite()])
    start = torch.rand(x.frac.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    alone = torch.cat(
        [nearest_way(part, f) for part, f in zip(x.split(), start.split(x.num_atoms.tolist()), strict=True)]
    )
    torch.testing.assert_close(nearest_way(x, start), alone)
