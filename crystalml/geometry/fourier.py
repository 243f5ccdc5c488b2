"""Fourier features of fractional displacements: periodic, hence blind to the choice of image."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def fourier_features(delta: Tensor, num_frequencies: int, first: int = 1) -> Tensor:
    """psi(f) = [sin 2 pi k f, cos 2 pi k f] for k = first .. first + K - 1 (DiffCSP, Eq. 7).

    (..., 3) -> (..., 6 K). Only integer k keep the periodicity. DiffCSP starts at k = 0, a constant.
    """
    angle = fourier_angles(delta, num_frequencies, first)
    return torch.cat([angle.sin(), angle.cos()], -1)


def fourier_angles(delta: Tensor, num_frequencies: int, first: int = 1) -> Tensor:
    """2 pi k f of `fourier_features`: (..., 3) -> (..., 3 K)."""
    k = torch.arange(first, first + num_frequencies, device=delta.device, dtype=delta.dtype)
    return (delta[..., None] * (2 * math.pi * k)).flatten(-2)
