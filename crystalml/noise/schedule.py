"""Noise schedules as tables of T + 1 entries; entry 0 is the clean level, entry T the prior."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def linear_betas(num_steps: int = 1000, first: float = 1e-4, last: float = 2e-2) -> Tensor:
    """beta_t of DDPM (Ho et al. 2020), float64, (T + 1,) with beta_0 = 0."""
    betas = torch.linspace(first, last, num_steps, dtype=torch.float64)
    return torch.cat([torch.zeros(1, dtype=torch.float64), betas])


def cosine_betas(num_steps: int = 1000, s: float = 0.008) -> Tensor:
    """beta_t from the squared-cosine alpha-bar (Nichol & Dhariwal 2021), clipped to [1e-4, 0.9999]."""
    x = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    bar = torch.cos((x + s) / (1 + s) * math.pi / 2) ** 2
    betas = (1 - bar[1:] / bar[:-1]).clamp(1e-4, 0.9999)  # bounds of DiffCSP's code
    return torch.cat([torch.zeros(1, dtype=torch.float64), betas])


def geometric_sigmas(num_steps: int = 1000, first: float = 0.005, last: float = 0.5) -> Tensor:
    """sigma_t = first (last / first)^{(t - 1) / (T - 1)} with sigma_0 = 0 (DiffCSP, Table 5)."""
    sigmas = torch.logspace(math.log10(first), math.log10(last), num_steps, dtype=torch.float64)
    return torch.cat([torch.zeros(1, dtype=torch.float64), sigmas])
