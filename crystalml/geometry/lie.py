"""The lattice as an element of the Lie group GL(3): its logarithm in rotation, shape and volume."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

_DIAGONALS = ((1.0, -1.0, 0.0), (1.0, 1.0, -2.0), (1.0, 1.0, 1.0))


@cache
def basis() -> Tensor:
    """(9, 3, 3) float64 basis of gl(3), orthonormal in the Frobenius product (GemsDiff, Eq. 12).

    0-2 rotations (E_ab - E_ba) / sqrt(2) and 3-5 shears (E_ab + E_ba) / sqrt(2) with ab = 12, 13, 23;
    6, 7 the traceless diag(1, -1, 0) / sqrt(2) and diag(1, 1, -2) / sqrt(6); 8 the volume, I / sqrt(3).
    Shared and cached: clone before writing to it.
    """
    parts = []
    for sign in (-1.0, 1.0):
        for a, b in ((0, 1), (0, 2), (1, 2)):
            element = torch.zeros(3, 3, dtype=torch.float64)
            element[a, b], element[b, a] = 1.0, sign
            parts.append(element)
    parts += [torch.diag(torch.tensor(d, dtype=torch.float64)) for d in _DIAGONALS]
    return torch.stack([part / part.norm() for part in parts])


def coordinates(element: Tensor) -> Tensor:
    """(..., 3, 3) -> (..., 9) the coordinates <A, B_i> in `basis`."""
    return torch.einsum("...ij,kij->...k", element, basis().to(element))


def element(coordinates: Tensor) -> Tensor:
    """(..., 9) -> (..., 3, 3) the matrix sum_i k_i B_i."""
    return torch.einsum("...k,kij->...ij", coordinates, basis().to(coordinates))


@torch.no_grad()
def polar(lattice: Tensor) -> tuple[Tensor, Tensor]:
    """(b, 3, 3) L = P Q -> (log P, Q) in float64, P = (L L^T)^(1/2) positive and Q orthogonal; no gradient.

    A raw matrix may have no real logarithm; P always has one, and it does not change when the crystal is
    rotated (L -> L Q^T). Through repeated eigenvalues (any cubic cell) its derivative would be NaN.
    """
    values, vectors = torch.linalg.eigh(lattice.double() @ lattice.double().mT)
    root = values.clamp(min=torch.finfo(torch.float64).tiny).sqrt()
    log = (vectors * root.log()[..., None, :]) @ vectors.mT
    inverse = (vectors / root[..., None, :]) @ vectors.mT
    return log, inverse @ lattice.double()


@torch.no_grad()
def log_rotation(q: Tensor) -> Tensor:
    """(b, 3, 3) orthogonal Q -> antisymmetric A in float64 with exp(A) = Q, or -Q where Q is improper.

    The angle lies in 0..pi. Found from the quaternion, which is exact near 0 and near pi too.
    """
    q = q.double()
    q = q * torch.linalg.det(q).sign()[..., None, None]
    d = q.diagonal(dim1=-2, dim2=-1)
    x, y, z = d.unbind(-1)
    one = torch.ones_like(x)
    # Four times the products of the quaternion (w, x, y, z) with itself: every row is it, up to a factor.
    a, b, c = q[..., 2, 1] - q[..., 1, 2], q[..., 0, 2] - q[..., 2, 0], q[..., 1, 0] - q[..., 0, 1]
    u, v, w = q[..., 0, 1] + q[..., 1, 0], q[..., 0, 2] + q[..., 2, 0], q[..., 1, 2] + q[..., 2, 1]
    rows = [
        (one + x + y + z, a, b, c),
        (a, one + x - y - z, u, v),
        (b, u, one - x + y - z, w),
        (c, v, w, one - x - y + z),
    ]
    table = torch.stack([torch.stack(row, -1) for row in rows], -2)
    best = table.diagonal(dim1=-2, dim2=-1).argmax(-1)
    unit = table.gather(-2, best[..., None, None].expand(*best.shape, 1, 4))[..., 0, :]
    unit = unit / unit.norm(dim=-1, keepdim=True)
    unit = unit * torch.where(unit[..., :1] < 0, -1.0, 1.0)
    size = unit[..., 1:].norm(dim=-1)
    angle = 2 * torch.atan2(size, unit[..., 0])
    axis = unit[..., 1:] * (angle / size.clamp(min=1e-300))[..., None]
    rows_of = torch.eye(3, dtype=axis.dtype, device=axis.device).expand(*axis.shape[:-1], 3, 3)
    return torch.linalg.cross(rows_of, axis[..., None, :].expand_as(rows_of))
