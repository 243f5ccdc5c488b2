"""Quantiles of a predicted number, corrected by what was found on validation crystals."""

from __future__ import annotations

import torch
from scipy.special import stdtrit
from torch import Tensor, nn

from crystalml.errors import InputError

GRID = 200  # levels 1/200 .. 199/200 are kept
RANKED = 19  # validation crystals, from which on 5 % and 95 % have a rank
FEW = 4  # validation crystals, below which even the size of errors is a guess
_CRYSTALS = 4096  # at a time: torch.quantile takes no more than 16 million numbers


class Recalibration(nn.Module):
    """Q'_p = Q_p + s delta_p: quantiles of draws, moved by an offset in units of each crystal's scale s.

    delta_p is the conformal quantile at p of (y - Q_p) / s over validation crystals (conformalised quantile
    regression, Romano et al., NeurIPS 2019, one-sided and with a scale): for exchangeable crystals
    P(y < Q'_p) <= p below the median and P(y > Q'_p) <= 1 - p above, whatever the draws are worth.

    n crystals have ranks for p within 1/(n + 1) .. n/(n + 1) only; conformal prediction answers infinity
    beyond. There errors are taken to be normal and of unknown variance: Student's distribution about the
    draws' median (see `_student`), but no less than the largest error found. Below 19 crystals, where not
    even 5 % has a rank, that distribution is the answer at all levels.

    Before it is fitted, draws that are one point with an error bar stand for a normal distribution
    (spread=True), other draws for themselves.
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
        """Set the offsets from validation crystals: draws (n, k), scale (n,) and values (n,), n from 0 on.

        All in units of the spread of the training values, which stands for the errors of crystals that are
        missing from four.
        """
        scale, y = scale.cpu(), y.cpu()  # float64 is not for every accelerator
        n, raw = len(y), self._raw(draws.cpu())
        level = torch.arange(1, GRID, dtype=torch.float64) / GRID
        offsets = _student(raw.double(), scale.double(), y.double(), level)
        if n >= RANKED:
            ratio = ((y[:, None] - raw) / scale[:, None]).sort(0).values  # (n, levels)
            up, down = torch.ceil((n + 1) * level - 1e-9), torch.floor((n + 1) * level + 1e-9)
            rank = torch.where(level >= 0.5, up, down).long()
            found = ratio[rank.clamp(1, n) - 1, torch.arange(GRID - 1)].double()
            beyond = torch.where(level >= 0.5, torch.maximum(found, offsets), torch.minimum(found, offsets))
            offsets = torch.where((rank >= 1) & (rank <= n), found, beyond)
        self.offsets.copy_(offsets)
        self.fitted.fill_(n)

    @staticmethod
    def _raw(draws: Tensor) -> Tensor:
        """(b, k) -> (b, levels)."""
        levels = torch.arange(1, GRID, device=draws.device, dtype=draws.dtype) / GRID
        if draws.shape[1] == 1:
            return draws.expand(-1, GRID - 1)
        return torch.cat([torch.quantile(part, levels, dim=1).T for part in draws.split(_CRYSTALS)])


def _student(raw: Tensor, scale: Tensor, y: Tensor, level: Tensor) -> Tensor:
    """(levels,) offsets to m + s r t: m the median of the draws, t of Student's distribution.

    r is the root mean square of (y - m) / s: for normal errors (y - m) / (s r) of a new crystal has n degrees
    of freedom exactly, so intervals hold what they say from any n on. Draws that are no point lose, in the
    mean over the crystals, their own spread. Crystals missing from FEW count with an error of 1.
    """
    n, missing = len(y), max(FEW - len(y), 0)
    degrees, squares, spread = n + missing, float(missing), torch.zeros_like(level)
    if n:
        middle, s = raw[:, GRID // 2 - 1, None], scale[:, None]
        squares *= float(scale.square().reciprocal().mean())  # 1 / s of a crystal like those at hand
        squares += float(((y[:, None] - middle) / s).square().sum())
        spread = ((raw - middle) / s).mean(0)
    return (squares / degrees) ** 0.5 * torch.from_numpy(stdtrit(degrees, level.numpy())) - spread
