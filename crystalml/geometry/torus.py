"""The torus [0, 1)^3 of fractional coordinates."""

from __future__ import annotations

import torch
from torch import Tensor


def wrap(frac: Tensor) -> Tensor:
    """w(F) = F - floor(F) in [0, 1); in float32 (-1e-9) - floor(-1e-9) rounds to 1, which is mapped to 0."""
    wrapped = frac - frac.floor()
    return torch.where(wrapped >= 1, torch.zeros_like(wrapped), wrapped)


def logmap(delta: Tensor) -> Tensor:
    """Shortest displacement per coordinate, in [-1/2, 1/2].

    Shortest in fractional space only: the shortest Cartesian vector needs a search over images.
    """
    return delta - delta.round()


def remove_mean(values: Tensor, index: Tensor, num_atoms: Tensor) -> Tensor:
    """Subtract each crystal's mean over its atoms from (n, k) values."""
    total = values.new_zeros(num_atoms.shape[0], values.shape[-1]).index_add(0, index, values)
    return values - (total / num_atoms[:, None].to(values.dtype))[index]


def shortest(delta: Tensor, lattice: Tensor) -> Tensor:
    """(n, 3) fractional displacements -> the equivalent ones of least Cartesian length.

    lattice: (n, 3, 3), a cell for each. The 27 images around `logmap` are searched, which is enough for
    Niggli-reduced cells; rounding coordinates alone (`logmap`) misses every sixth shortest vector there.
    """
    steps = torch.tensor([-1.0, 0.0, 1.0], dtype=delta.dtype, device=delta.device)
    images = torch.cartesian_prod(steps, steps, steps)
    choices = logmap(delta)[:, None] + images  # (n, 27, 3)
    best = (choices @ lattice).square().sum(-1).argmin(-1)
    return choices.gather(1, best[:, None, None].expand(-1, 1, 3))[:, 0]
