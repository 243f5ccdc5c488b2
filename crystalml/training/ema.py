"""Exponential moving average of a model's parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """shadow <- decay shadow + (1 - decay) weights, decay warmed up as (1 + n) / (10 + n).

    The warm-up lets short runs forget their initial weights.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = dict(model.named_parameters())
        names = list(self.shadow)
        torch._foreach_lerp_(  # one fused call; a Python loop over tensors costs more than the arithmetic
            [self.shadow[name] for name in names], [current[name] for name in names], 1 - decay
        )

    def load(self, shadow: Mapping[str, Tensor], updates: int) -> None:
        for name, value in shadow.items():
            self.shadow[name].copy_(value)
        self.updates = updates

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Run a block with the averaged weights in the model."""
        live = {name: p.detach().clone() for name, p in model.named_parameters()}
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in self.shadow.items():
                parameters[name].copy_(value)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in live.items():
                    parameters[name].copy_(value)
