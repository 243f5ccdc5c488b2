"""Fourier features of fractional displacements: periodic, hence blind to the choice of image."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def fourier_features(delta: Tensor, num_frequencies: int, first: int = 1) -> Tensor:
    """psi(f) = [sin 2 pi k f, cos 2 pi k f] for k = first .. first + K - 1 (DiffCSP, Eq. 7).

    (..., 3) -> (..., 6 K). Only integer k keep the periodicity. DiffCSP starts at k = 0, a constant.
    """
    k = torch.arange(first, first + num_frequencies, device=delta.device, dtype=delta.dtype)
    angle = (2 * math.pi) * (delta[..., None] * k).flatten(-2)
    return torch.cat([angle.sin(), angle.cos()], -1)
