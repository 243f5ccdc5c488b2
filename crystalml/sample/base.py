"""What all samplers share: how the network is asked, where a path starts, which levels it visits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch, Tangent
from crystalml.errors import InputError
from crystalml.models.layers import fast_autocast
from crystalml.noise.product import CrystalNoise
from crystalml.noise.rng import Draws, SampleNoise

Denoiser = Callable[[CrystalBatch, Tensor], Tangent]
Guide = Callable[[CrystalBatch, Tensor], Tangent]
Hold = Callable[[CrystalBatch, int], CrystalBatch]
"""(batch, level it is at) -> the batch with what is known put in place: see `sample.known`."""


class Sampler(Protocol):
    """From noise to crystals; with `start`, from the template's crystals noised to that level."""

    @property
    def noise(self) -> CrystalNoise: ...

    @property
    def start(self) -> int | None: ...

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample."""
        ...

    def levels(self) -> list[int]: ...

    def trajectory(
        self,
        denoiser: Denoiser,
        template: CrystalBatch,
        seeds: Tensor | Draws,
        guide: Guide | None = None,
        hold: Hold | None = None,
    ) -> Iterator[CrystalBatch]: ...


def last(path: Iterator[CrystalBatch]) -> CrystalBatch:
    """The sample at the end of a trajectory."""
    return deque(path, maxlen=1)[0]


def spaced(noise: CrystalNoise, steps: int | None, start: int | None = None) -> list[int]:
    """start = t_0 > t_1 > ... > 0, evenly; from T unless a start is given. steps None visits every level."""
    first = noise.num_steps if start is None else start
    count = first if steps is None else min(steps, first)
    return torch.linspace(first, 0, count + 1, dtype=torch.float64).round().int().tolist()


def check_levels(noise: CrystalNoise, steps: int | None, start: int | None) -> None:
    for name, value in (("steps", steps), ("start", start)):
        if value is not None and not 1 <= value <= noise.num_steps:
            raise InputError(f"{name} must lie in 1..{noise.num_steps}, not {value}")


def as_draws(seeds: Tensor | Draws, template: CrystalBatch) -> Draws:
    """Seeds (b,) int64 -> their random numbers; a sample is a function of its seed alone."""
    return SampleNoise(seeds, template.num_atoms) if isinstance(seeds, Tensor) else seeds


def begin(noise: CrystalNoise, template: CrystalBatch, draws: Draws, start: int | None) -> CrystalBatch:
    """The prior draw, or the template's crystals noised to the level `start` (SDEdit, Meng et al. 2022)."""
    return noise.prior(template, draws) if start is None else noise.at_level(template, start, draws)


def ask(denoiser: Denoiser, x: CrystalBatch, t: int, autocast: bool | None) -> tuple[Tensor, Tensor, Tensor]:
    """(normalised score (n, 3), lattice noise (b, 3, 3), levels (b,)) as the network predicts them."""
    level = torch.full((len(x),), t, device=x.device)
    with fast_autocast(x.device, autocast if x.dtype == torch.float32 else False):
        out = denoiser(x, level)
    assert out.frac is not None and out.lattice is not None
    return out.frac, out.lattice, level
