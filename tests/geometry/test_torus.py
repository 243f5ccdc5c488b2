import torch

from crystalml.geometry.fourier import fourier_features
from crystalml.geometry.torus import logmap, remove_mean, wrap


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
