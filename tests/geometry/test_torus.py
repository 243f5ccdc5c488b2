import torch

from crystalml.geometry.fourier import fourier_features
from crystalml.geometry.neighbors import minkowski_reduce
from crystalml.geometry.torus import logmap, remove_mean, shortest, wrap
from crystalml.testing import rand_crystals


def test_wrap_never_reaches_one_in_float32() -> None:
    x = torch.tensor([-1e-9, 0.0, 1.0, 1 - 1e-9, -3.25, 7.5], dtype=torch.float32)
    wrapped = wrap(x)
    assert ((wrapped >= 0) & (wrapped < 1)).all()
    torch.testing.assert_close(wrapped, torch.tensor([0, 0, 0, 0, 0.75, 0.5]))


def test_logmap_is_shortest_and_congruent() -> None:
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)
    d = logmap(x)
    assert (d.abs() <= 0.5).all()
    torch.testing.assert_close((x - d).round(), x - d)


def test_remove_mean_leaves_each_crystal_centred() -> None:
    counts = torch.tensor([1, 3, 2])
    index = torch.arange(3).repeat_interleave(counts)
    values = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    centred = remove_mean(values, index, counts)
    sums = torch.zeros(3, 3, dtype=torch.float64).index_add(0, index, centred)
    torch.testing.assert_close(sums, torch.zeros_like(sums))
    torch.testing.assert_close(centred[0], torch.zeros(3, dtype=torch.float64))


def test_fourier_features_are_periodic_and_not_constant() -> None:
    f = torch.rand(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features = fourier_features(f, 5)
    assert features.shape == (7, 30)
    torch.testing.assert_close(fourier_features(f + torch.tensor([1.0, -2.0, 3.0]), 5), features)
    assert features.std(0).min() > 0.1
    swapped = fourier_features(-f, 5)
    torch.testing.assert_close(swapped, torch.cat([-features[:, :15], features[:, 15:]], -1))


def test_shortest_vectors_of_27_images_are_those_of_343() -> None:
    """On Niggli-like cells; rounding the coordinates alone misses a good part of them."""
    g = torch.Generator().manual_seed(0)
    x = rand_crystals(0, 150)
    lattice = minkowski_reduce(x.lattice).repeat_interleave(40, 0)
    delta = 4 * torch.rand(len(lattice), 3, generator=g, dtype=torch.float64) - 2
    steps = torch.arange(-3.0, 4.0, dtype=torch.float64)
    brute = logmap(delta)[:, None] + torch.cartesian_prod(steps, steps, steps)
    least = (brute @ lattice).norm(dim=-1).amin(1)
    found = shortest(delta, lattice)
    torch.testing.assert_close((found[:, None] @ lattice).norm(dim=-1)[:, 0], least, atol=1e-9, rtol=0)
    turns = found - delta
    torch.testing.assert_close(turns, turns.round(), atol=1e-9, rtol=0)
    rounded = (logmap(delta)[:, None] @ lattice).norm(dim=-1)[:, 0]
    assert (rounded > least + 1e-9).double().mean() > 0.02
