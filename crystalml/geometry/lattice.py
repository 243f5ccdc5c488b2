"""Lattice matrices (rows a, b, c) and their rotation-invariant descriptions."""

from __future__ import annotations

import torch
from torch import Tensor


def gram(lattice: Tensor) -> Tensor:
    """Metric tensor G = L Lᵀ, (b, 3, 3), in square Angstrom: all scalar products of the lattice vectors."""
    return lattice @ lattice.transpose(-1, -2)


def mean_gram(lattice: Tensor, rotations: Tensor) -> Tensor:
    """(..., 3, 3) mean of W^T G W over rotations W (g, 3, 3) of fractional columns, which leave it alone."""
    return (rotations.mT @ gram(lattice)[..., None, :, :] @ rotations).mean(-3)


def determinant(lattice: Tensor) -> Tensor:
    """a . (b x c): (b, 3, 3) -> (b,), positive for right-handed cells. Faster than LAPACK's."""
    a, b, c = lattice.unbind(-2)
    return (a * torch.linalg.cross(b, c)).sum(-1)


def params(lattice: Tensor) -> Tensor:
    """(b, 6) lengths in Angstrom and angles alpha, beta, gamma in degrees.

    Angles come from atan2(|u x v|, u.v): acos has infinite slope at 0 and 180 degrees.
    """
    a, b, c = lattice.unbind(-2)
    pairs = ((b, c), (a, c), (a, b))
    angles = [torch.atan2(torch.linalg.cross(u, v).norm(dim=-1), (u * v).sum(-1)).rad2deg() for u, v in pairs]
    return torch.cat([lattice.norm(dim=-1), torch.stack(angles, -1)], -1)


def from_params(params: Tensor) -> Tensor:
    """(b, 6) lengths and angles -> (b, 3, 3): c along z, a in the xz-plane, det > 0 (pymatgen's choice)."""
    a, b, c = params[..., :3].unbind(-1)
    alpha, beta, gamma = params[..., 3:].deg2rad().unbind(-1)
    cos_g = (alpha.cos() * beta.cos() - gamma.cos()) / (alpha.sin() * beta.sin())
    gamma_star = torch.acos(cos_g.clamp(-1, 1))
    zero = torch.zeros_like(a)
    rows = [
        torch.stack([a * beta.sin(), zero, a * beta.cos()], -1),
        torch.stack(
            [
                -b * alpha.sin() * gamma_star.cos(),
                b * alpha.sin() * gamma_star.sin(),
                b * alpha.cos(),
            ],
            -1,
        ),
        torch.stack([zero, zero, c], -1),
    ]
    return torch.stack(rows, -2)


def log_metric(lattice: Tensor, eps: float = 1e-6) -> Tensor:
    """(b, 6) log lengths and cosines of the angles: the metric tensor on a scale of order one."""
    length = lattice.norm(dim=-1).clamp(min=eps)
    g = gram(lattice / length[..., None])
    cosines = torch.stack([g[..., 1, 2], g[..., 0, 2], g[..., 0, 1]], -1)
    return torch.cat([length.log(), cosines], -1)
