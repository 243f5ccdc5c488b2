"""Neighbours of many small crystals at once on an accelerator: every pair with every image that may count."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_CANDIDATES = 40_000_000  # of a batch; more are cheaper found by cells than tried one by one
AT_ONCE = 10_000_000  # of them, at about 170 bytes each in float32 and 230 in float64: 2.3 GB


def candidates(lattice: Tensor, num_atoms: Tensor, pbc: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """(b, 3) images to visit on either side along each axis, and (b,) how many pairs that makes.

    Atoms of the home cell differ by less than 1 along an axis, the planes of whose images are h = V / area
    apart: |k| <= ceil(cutoff / h) reaches all that are near enough.
    """
    heights = torch.linalg.vector_norm(torch.linalg.inv(lattice), dim=-2).reciprocal()
    reach = (cutoff / heights).ceil().long() * pbc
    return reach, num_atoms.square() * (2 * reach + 1).prod(-1)


def image_pairs(
    frac: Tensor, lattice: Tensor, num_atoms: Tensor, reach: Tensor, cutoff: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(i, j, shift) of all pairs with |x_j + shift L - x_i| < cutoff, sorted by i; no loop over crystals.

    frac lies in the home cell along periodic axes; reach as `candidates` gives it.
    """
    total = int((num_atoms.square() * (2 * reach + 1).prod(-1)).sum())
    parts = [
        _near(
            frac, lattice, num_atoms, reach, cutoff,
            torch.arange(start, min(start + AT_ONCE, total), device=frac.device),
        )
        for start in range(0, max(total, 1), AT_ONCE)
    ]  # fmt: skip
    i, j, shift = (torch.cat(part) for part in zip(*parts, strict=True))
    return i, j, shift


def _near(
    frac: Tensor, lattice: Tensor, num_atoms: Tensor, reach: Tensor, cutoff: float, place: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`image_pairs` among some candidates, (m,) their numbers in the order of crystals and their atoms."""
    width = 2 * reach + 1
    images = width.prod(-1)
    counts = num_atoms.square() * images
    ends = counts.cumsum(0)
    crystal = torch.searchsorted(ends, place, right=True)
    place = place - (ends - counts)[crystal]
    pair, image = place // images[crystal], place % images[crystal]
    first, atoms, w = (num_atoms.cumsum(0) - num_atoms)[crystal], num_atoms[crystal], width[crystal]
    i, j = first + pair // atoms, first + pair % atoms
    shift = torch.stack([image // (w[:, 1] * w[:, 2]), image // w[:, 2] % w[:, 1], image % w[:, 2]], -1)
    shift = shift - reach[crystal]
    delta = frac[j] - frac[i] + shift.to(frac.dtype)
    vector = (delta[:, None] @ lattice[crystal])[:, 0]
    near = (vector.square().sum(-1) < cutoff**2) & ((i != j) | shift.any(-1))
    return i[near], j[near], shift[near]
