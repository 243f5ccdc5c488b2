"""Quantiles of a predicted number, corrected by what was found on validation crystals."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crystalml.errors import InputError

GRID = 200  # levels 1/200 .. 199/200 are kept
_CRYSTALS = 4096  # at a time: torch.quantile takes no more than 16 million numbers


class Recalibration(nn.Module):
    """Q'_p = Q_p + s delta_p: quantiles of draws, moved by an offset in units of each crystal's scale s.

    delta_p is the conformal quantile at p of (y - Q_p) / s over validation crystals (conformalised quantile
    regression, Romano et al., NeurIPS 2019, one-sided and with a scale): for exchangeable crystals
    P(y < Q'_p) <= p below the median and P(y > Q'_p) <= 1 - p above, whatever the draws are worth. Before
    it is fitted, draws that are one point with an error bar stand for a normal distribution (spread=True),
    other draws for themselves.
    """

    offsets: Tensor
    fitted: Tensor

    def __init__(self, spread: bool = True) -> None:
        super().__init__()
        levels = torch.arange(1, GRID, dtype=torch.float64) / GRID
        self.register_buffer("offsets", (torch.special.ndtri(levels) * spread).float())
        self.register_buffer("fitted", torch.tensor(0))  # validation crystals

    def forward(self, draws: Tensor, scale: Tensor, levels: Tensor) -> Tensor:
        """draws (b, k), scale (b,), levels (m,) within 1/200 .. 199/200 -> (b, m), rising with the level."""
        if not bool(((levels >= 1 / GRID) & (levels <= 1 - 1 / GRID)).all()):
            raise InputError(f"quantiles lie between {1 / GRID} and {1 - 1 / GRID}, not {levels.tolist()}")
        table = self._raw(draws) + scale[:, None] * self.offsets.to(draws)
        table = table.sort(1).values  # offsets that cross are put in order (Chernozhukov et al. 2010)
        place = levels.to(draws) * GRID - 1
        below = place.floor().long().clamp(0, GRID - 3)
        return torch.lerp(
            table[:, below], table[:, below + 1], (place - below).clamp(0, 1).expand(len(draws), -1)
        )

    @torch.no_grad()
    def fit(self, draws: Tensor, scale: Tensor, y: Tensor) -> None:
        """Set the offsets from validation crystals: draws (n, k), scale (n,) and values (n,)."""
        n = len(y)
        ratio = ((y[:, None] - self._raw(draws)) / scale[:, None]).sort(0).values  # (n, levels)
        level = torch.arange(1, GRID, dtype=torch.float64) / GRID
        up, down = torch.ceil((n + 1) * level - 1e-9), torch.floor((n + 1) * level + 1e-9)
        rank = torch.where(level >= 0.5, up, down).clamp(1, n).long() - 1
        self.offsets.copy_(ratio[rank.to(y.device), torch.arange(GRID - 1, device=y.device)])
        self.fitted.fill_(n)

    @staticmethod
    def _raw(draws: Tensor) -> Tensor:
        """(b, k) -> (b, levels)."""
        levels = torch.arange(1, GRID, device=draws.device, dtype=draws.dtype) / GRID
        if draws.shape[1] == 1:
            return draws.expand(-1, GRID - 1)
        return torch.cat([torch.quantile(part, levels, dim=1).T for part in draws.split(_CRYSTALS)])
