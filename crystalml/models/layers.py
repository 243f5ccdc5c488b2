"""Building blocks shared by the networks."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


class MLP(nn.Sequential):
    """Linear, SiLU, Linear, ... with the given widths; no activation at the end."""

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            layers += [nn.SiLU()] * (i > 0) + [nn.Linear(a, b)]
        super().__init__(*layers)


class TimeEmbedding(nn.Module):
    """[sin, cos](t w_i) at rates 1 .. 1/base of the integer time (methods K6). (b,) -> (b, dim)."""

    rates: Tensor

    def __init__(self, dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        half = dim // 2
        rates = torch.exp(-math.log(base) / (half - 1) * torch.arange(half))
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angle = t[:, None].to(self.rates.dtype) * self.rates
        return torch.cat([angle.sin(), angle.cos()], -1)


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis where mask is True; rows without any True give zeros, never NaN."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).masked_fill(~mask, -1e9)
    weight = torch.exp(logits - logits.amax(-1, keepdim=True).detach()) * mask
    return weight / weight.sum(-1, keepdim=True).clamp(min=1e-9)


class GatedResidual(nn.Module):
    """GR(x, y) = alpha x + (1 - alpha) y, alpha = sigmoid(w . [x, y, x - y]), one a node (DAO, Eq. 8).

    The paper leaves alpha in R; unbounded it can grow with depth, hence the sigmoid.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(3 * dim, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        on_x, on_y, on_difference = self.gate.weight.chunk(3, -1)  # the concatenation, multiplied out
        logit = x @ (on_x + on_difference).mT + y @ (on_y - on_difference).mT + self.gate.bias
        return y + torch.sigmoid(logit) * (x - y)


class EdgeAttention(nn.Module):
    """Multi-head attention whose keys and values carry edge features (DAO, Eqs. 6-7).

    k_ij = phi_k(h_j) + phi_e(u_ij), v_ij = phi_v(h_j) + phi_e(u_ij), phi_e shared by both and linear
    in u_ij, so q.phi_e(u) = (phi_e^T q).u and sum_j a_ij phi_e(u_ij) = phi_e(sum_j a_ij u_ij): exact,
    and no (N, N, dim) tensor is ever made.
    """

    def __init__(self, dim: int, heads: int, edge_dim: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} is not a multiple of heads {heads}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.edge = nn.Parameter(torch.randn(heads, dim // heads, edge_dim) / edge_dim**0.5)
        self.out = nn.Linear(dim, dim)

    def forward(self, h: Tensor, edges: Tensor, mask: Tensor) -> Tensor:
        """h (b, N, dim), edges (b, N, N, edge_dim), mask (b, N, N) True where j may be attended."""
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).unbind(-3)  # (b, N, heads, d)
        folded = torch.einsum("bnhd,hde->bnhe", q, self.edge.to(q.dtype))
        logits = torch.einsum("bihd,bjhd->bihj", q, k) + folded @ edges.transpose(-1, -2)
        weight = masked_softmax(logits * q.shape[-1] ** -0.5, mask[:, :, None]).to(v.dtype)
        summed = torch.einsum("bihe,hde->bihd", weight @ edges, self.edge.to(q.dtype))
        z = torch.einsum("bihj,bjhd->bihd", weight, v) + summed
        return self.out(z.flatten(-2))


def feed_forward(dim: int, factor: int = 4) -> nn.Sequential:
    """Two-layer SiLU network of the Transformer block."""
    return nn.Sequential(nn.Linear(dim, factor * dim), nn.SiLU(), nn.Linear(factor * dim, dim))


def fast_autocast(device: torch.device, enabled: bool | None = None) -> torch.autocast:
    """bfloat16 matrix products where hardware runs them natively (CUDA, CPUs with AMX), else nothing."""
    if enabled is None:
        enabled = device.type == "cuda" or (device.type == "cpu" and _cpu_has_bf16())
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def _cpu_has_bf16() -> bool:
    check = getattr(torch.cpu, "_is_amx_tile_supported", None)  # private; absent means unknown, so no
    return bool(check and check())
