"""The noise in a property, read from a crystal's features: the one new network of CrysDiff."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from crystalml.models.layers import TimeEmbedding

Kind = Literal["affine", "mlp", "paper"]


class ScalarNoiseHead(nn.Module):
    """eps(h, y_t, t) of a property y diffused around a crystal with features h (CrysDiff, Eq. 4).

    "mlp" (default): a network of [h, y_t, t], for distributions of any shape. "affine": y_t phi_1(h, t) +
    phi_0(h, t), exact where the property of a crystal is certain or normal. "paper": y_t phi(h, t) as
    printed, which is zero at y_t = 0 whatever the crystal: with the best phi its loss cannot fall below
    0.211 for uniform t.
    """

    def __init__(self, dim: int, kind: Kind = "mlp", hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or dim
        self.kind = kind
        self.time = TimeEmbedding(hidden)
        self.of_features = nn.Linear(dim, hidden)
        self.of_time = nn.Linear(hidden, hidden, bias=False)
        self.of_value = nn.Linear(1, hidden, bias=False) if kind == "mlp" else None
        self.out = nn.Linear(hidden, 2 if kind == "affine" else 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """features (b, d), values y (b, c) of c chains, level t (b,) -> noise (b, c)."""
        return self.read(self.of_features(features), y, t)

    def read(self, base: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """`forward` from `of_features(features)`, which a chain computes once. t: (b,), or (1,) for all."""
        base = base + self.of_time(self.time(t).to(base.dtype))
        if self.of_value is not None:
            slope = self.of_value.weight[:, 0]  # in one pass: chains spend their time here
            hidden = nn.functional.silu(torch.addcmul(base[:, None], y[..., None], slope))
            value: Tensor = self.out(hidden).squeeze(-1)
            return value
        out = self.out(nn.functional.silu(base))
        slope, *offset = out.split(1, -1)
        return y * slope + (offset[0] if offset else torch.zeros_like(slope))
