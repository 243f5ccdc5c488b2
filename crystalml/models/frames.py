"""Local frames of atoms: three vectors that turn with the crystal, and vanish where symmetry leaves none."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.models.pairs import Pairs

FrameKind = Literal["periodic", "paper"]

_EPS = 1e-2  # of the typical scale: frames of less than this polarity fade out
_TINY = 1e-20  # under square roots, so that they have a derivative at 0


def cosine_cutoff(r: Tensor, cutoff: float) -> Tensor:
    """(1 + cos(pi r / c)) / 2 below the cutoff, 0 beyond (NeuralCrystal, Eq. 3)."""
    return 0.5 * (1 + torch.cos(torch.pi * (r / cutoff).clamp(max=1.0)))


def gaussians(r: Tensor, count: int, cutoff: float) -> Tensor:
    """exp(-gamma (r - s_m)^2), centres s_m evenly on [0, c], gamma = 1 / spacing^2: (...,) -> (..., count)
    (NeuralCrystal, Eq. 2)."""
    centres = torch.arange(count, dtype=r.dtype, device=r.device)  # in spacings
    far = ((r * ((count - 1) / cutoff))[..., None] - centres).square()
    return torch.exp(-far.clamp(max=80.0))  # numbers below 1e-38 would cost ten times as much


def periodic_frames(pairs: Pairs, cutoff: float) -> Tensor:
    """(n, 3, 3) rows e0, e1, e2 from the neighbours over all images: independent of the choice of the cell.

    u, v = mean vectors to the neighbours under two smooth weights; e0 = -u/|u|, e1 = u x v / |u x v|,
    e2 = e0 x e1, each times a factor that takes it to zero where u or u x v does. At a site whose point group
    admits no polar vector (inversion, T_d, ...) the zero is forced by symmetry: any repaired frame would
    break the equivariance.
    """
    near = cosine_cutoff(pairs.distance, cutoff)
    u = _mean_vector(near.square(), pairs)
    v = _mean_vector(near * (1 - near), pairs)
    return _frame(-u, torch.linalg.cross(u, v))


def paper_frames(x: CrystalBatch, pairs: Pairs, cutoff: float) -> Tensor:
    """(n, 3, 3) frames as printed (NeuralCrystal, Eq. 1): e0 || x_i - x_k, e1 || x_i x x_k, e2 = e0 x e1.

    x_k is the mean of the neighbours within one cell, positions are taken from the cell's mean. An atom that
    leaves the cell through one face and enters by the other changes its frame: kept for comparison.
    """
    cart, counts = x.cart, x.num_atoms[:, None].to(x.dtype)
    mean = cart.new_zeros(len(x), 3).index_add(0, x.index, cart) / counts
    cart = cart - mean[x.index]
    near = (pairs.distance < cutoff).to(cart.dtype)
    total = near.sum(1, keepdim=True)
    away = (near[..., None] * pairs.vector).sum(1) / total.clamp(min=1)  # x_k - x_i
    return _frame(-away, torch.linalg.cross(cart, cart + away))


def orientation(frames: Tensor, pairs: Pairs, chiral: bool) -> Tensor:
    """(n, K, 9) the relative rotations E_i E_j^T, which only are invariant; frames as such are not.

    chiral=False squares the entries that change sign in a mirror.
    """
    other = pairs.gather(frames)
    out = (other.flatten(1, 2) @ frames.mT).view(*other.shape[:2], 9)  # row of j, column of i
    return out if chiral else _even(out, [1, 3, 5, 7])


def local(vectors: Tensor, frames: Tensor, chiral: bool) -> Tensor:
    """Components E_i v of vectors (n, 3, c) in their atom's frame, flat (n, 3 c): invariants.

    chiral=False squares those along e1, a pseudovector; then mirror images look alike.
    """
    out = frames.to(vectors.dtype) @ vectors
    if not chiral:
        out = torch.stack([out[:, 0], out[:, 1].square(), out[:, 2]], 1)
    return out.flatten(1)


def _even(values: Tensor, odd: list[int]) -> Tensor:
    sign = torch.tensor([k in odd for k in range(values.shape[-1])], device=values.device)
    return torch.where(sign, values.square(), values)


def _mean_vector(weight: Tensor, pairs: Pairs) -> Tensor:
    """sum w d / sum w |d|: (n, 3), of length 0 to 1, the polarity of the surroundings."""
    scale = (weight * pairs.distance).sum(1, keepdim=True).clamp(min=1e-6)
    return (weight[..., None] * pairs.vector).sum(1) / scale


def _frame(first: Tensor, second: Tensor) -> Tensor:
    e0, e1 = _fading_unit(first), _fading_unit(second)
    return torch.stack([e0, e1, torch.linalg.cross(e0, e1)], 1)


def _fading_unit(a: Tensor) -> Tensor:
    """a/|a| times |a|^2 / (|a|^2 + eps^2)."""
    square = a.square().sum(-1, keepdim=True)
    return a * (square + _TINY).sqrt() / (square + _EPS**2)
