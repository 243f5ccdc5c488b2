import pytest
import torch
from torch import Tensor

from crystalml.geometry import lie
from crystalml.geometry.lattice import from_params
from crystalml.geometry.neighbors import minkowski_reduce
from crystalml.testing import fcc, hexagonal, perovskite, random_rotation


def cells(count: int = 1000) -> Tensor:
    """Reduced cells of every kind: triclinic ones, and with equal lengths or right and hexagonal angles."""
    g = torch.Generator().manual_seed(0)
    lengths = 2.5 + 9 * torch.rand(count, 3, generator=g, dtype=torch.float64)
    angles = 60 + 60 * torch.rand(count, 3, generator=g, dtype=torch.float64)
    angles[::5], lengths[::10] = 90.0, lengths[::10, :1]  # orthorhombic and cubic
    angles[1::5] = torch.tensor([90.0, 90.0, 120.0], dtype=torch.float64)
    lengths[1::5, 1] = lengths[1::5, 0]
    lattice = minkowski_reduce(from_params(torch.cat([lengths, angles], -1)))
    return lattice * torch.linalg.det(lattice).sign()[:, None, None]


def test_the_basis_is_orthonormal_and_splits_into_rotation_shape_volume() -> None:
    b = lie.basis()
    products = torch.einsum("aij,bij->ab", b, b)
    assert (products - torch.eye(9)).abs().max() <= 1e-12
    assert torch.equal(b[:3], -b[:3].mT) and torch.equal(b[3:], b[3:].mT)
    assert b[:8].diagonal(dim1=-2, dim2=-1).sum(-1).abs().max() <= 1e-12
    cube = lie.coordinates(lie.polar(5 * torch.eye(3, dtype=torch.float64)[None])[0])
    assert cube[0, 8].item() == pytest.approx(2.788, abs=5e-4)
    assert cube[0, :8].abs().max() < 1e-12


def test_exponential_of_the_logarithm_is_the_cell() -> None:
    lattice = cells()
    log, turn = lie.polar(lattice)
    assert (torch.matrix_exp(lie.element(lie.coordinates(log))) @ turn - lattice).abs().max() <= 1e-10
    assert lie.coordinates(log)[:, :3].abs().max() < 1e-12
    again, identity = lie.polar(torch.matrix_exp(log))
    assert (again - log).abs().max() <= 1e-10 and (identity - torch.eye(3)).abs().max() <= 1e-10


@pytest.mark.parametrize("reflect", [False, True])
def test_coordinates_do_not_turn_with_the_crystal(reflect: bool) -> None:
    lattice, q = cells(), random_rotation(1, reflect)
    before, after = (lie.coordinates(lie.polar(x)[0]) for x in (lattice, lattice @ q.T))
    assert (before - after).abs().max() <= 1e-10


def test_permuted_axes_turn_the_logarithm() -> None:
    """U = a signed permutation: the polar frame turns by U, so log P -> U log P U^T."""
    u = torch.tensor([[0.0, 1, 0], [0, 0, -1], [-1, 0, 0]], dtype=torch.float64)
    lattice = cells(50)
    log, moved = lie.polar(lattice)[0], lie.polar(u @ lattice)[0]
    assert (moved - u @ log @ u.T).abs().max() < 1e-10


def test_logarithm_of_rotations() -> None:
    turns = [random_rotation(seed) for seed in range(200)]
    half = [torch.diag(torch.tensor(d, dtype=torch.float64)) for d in ([1, -1, -1], [-1, 1, -1], [-1, -1, 1])]
    small = torch.matrix_exp(1e-9 * lie.basis()[:3])
    q = torch.stack([*turns, *half, *small, torch.eye(3, dtype=torch.float64)])
    a = lie.log_rotation(q)
    assert torch.equal(a, -a.mT)
    assert (torch.matrix_exp(a) - q).abs().max() < 1e-12
    assert lie.coordinates(a).norm(dim=-1).max() <= 2**0.5 * torch.pi + 1e-9
    improper = random_rotation(5, reflect=True)[None]
    assert (torch.matrix_exp(lie.log_rotation(improper)) + improper).abs().max() < 1e-12


@pytest.mark.parametrize("crystal", [fcc, perovskite, hexagonal])
def test_decoding_is_differentiable_where_eigenvalues_repeat(crystal) -> None:  # type: ignore[no-untyped-def]
    k = lie.coordinates(lie.polar(crystal().lattice)[0]).requires_grad_()
    (slope,) = torch.autograd.grad(torch.matrix_exp(lie.element(k)).square().sum(), k)
    assert slope.isfinite().all() and slope.abs().max() > 0
