import torch
from pymatgen.core import Lattice

from crystalml.geometry.lattice import determinant, from_params, gram, log_metric, params
from crystalml.testing import rand_crystals, random_rotation


def test_determinants_are_those_of_linear_algebra_left_handed_or_right() -> None:
    cells = torch.cat([rand_crystals(0, 20).lattice, -rand_crystals(1, 20).lattice])
    torch.testing.assert_close(determinant(cells), torch.linalg.det(cells))


def test_params_agree_with_pymatgen() -> None:
    cells = rand_crystals(0, 20).lattice
    expected = torch.tensor([Lattice(c.numpy()).parameters for c in cells], dtype=cells.dtype)
    torch.testing.assert_close(params(cells), expected, atol=1e-8, rtol=1e-8)


def test_from_params_is_pymatgens_orientation_and_round_trips() -> None:
    p = params(rand_crystals(1, 20).lattice)
    cells = from_params(p)
    expected = torch.stack([torch.tensor(Lattice.from_parameters(*row.tolist()).matrix) for row in p])
    torch.testing.assert_close(cells, expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(params(cells), p, atol=1e-7, rtol=1e-9)
    assert (torch.linalg.det(cells) > 0).all()


def test_metrics_ignore_rotation_and_reflection() -> None:
    cells = rand_crystals(2, 10).lattice
    for reflect in (False, True):
        turned = cells @ random_rotation(3, reflect).T
        torch.testing.assert_close(gram(turned), gram(cells))
        torch.testing.assert_close(log_metric(turned), log_metric(cells))


def test_log_metric_is_a_function_of_gram() -> None:
    cells = rand_crystals(4, 5).lattice
    g = gram(cells)
    diagonal = g.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(log_metric(cells)[:, :3], diagonal.log() / 2)
    cos_gamma = g[:, 0, 1] / (diagonal[:, 0] * diagonal[:, 1]).sqrt()
    torch.testing.assert_close(log_metric(cells)[:, 5], cos_gamma)
