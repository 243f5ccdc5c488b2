"""Neighbours of many small crystals at once on an accelerator: every pair with every image that may count."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_CANDIDATES = 40_000_000  # of a batch; more are cheaper found by cells than tried one by one


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
    """(i, j, shift) of all pairs with |x_j + shift L - x_i| < cutoff, sorted by i, without a Python loop.

    frac lies in the home cell along periodic axes; reach as `candidates` gives it. About 60 bytes for each
    of the pairs tried.
    """
    width = 2 * reach + 1
    images = width.prod(-1)
    counts = num_atoms.square() * images
    crystal = torch.arange(len(counts), device=frac.device).repeat_interleave(counts)
    place = torch.arange(len(crystal), device=frac.device) - (counts.cumsum(0) - counts)[crystal]
    pair, image = place // images[crystal], place % images[crystal]
    first, atoms, w = (num_atoms.cumsum(0) - num_atoms)[crystal], num_atoms[crystal], width[crystal]
    i, j = first + pair // atoms, first + pair % atoms
    shift = torch.stack([image // (w[:, 1] * w[:, 2]), image // w[:, 2] % w[:, 1], image % w[:, 2]], -1)
    shift = shift - reach[crystal]
    delta = frac[j] - frac[i] + shift.to(frac.dtype)
    vector = (delta[:, None] @ lattice[crystal])[:, 0]
    near = (vector.square().sum(-1) < cutoff**2) & ((i != j) | shift.any(-1))
    return i[near], j[near], shift[near]
