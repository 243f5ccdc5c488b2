"""Fine-tuning on a property: train, watch validation crystals, keep the best."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.datasets.packed import PackedDataset
from crystalml.errors import TrainingError
from crystalml.models.layers import fast_autocast
from crystalml.models.model import CrystalModel
from crystalml.training.batches import batches
from crystalml.training.fit import FitConfig, Run, fit


class Task(Protocol):
    """What is learned, and the form of it that is watched on validation crystals."""

    def __call__(
        self, model: Any, x: CrystalBatch, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]: ...

    def watched(self) -> Self: ...


@dataclass(frozen=True)
class FinetuneConfig:
    """The run ends after `epochs`, after `minutes`, or when `patience` epochs brought nothing new.

    slow: the encoder's learning rate as a share of the head's. freeze: train the head alone. crystals: of a
    batch, None for a fiftieth of the data within 8 to 64. pairs: padded atom pairs or neighbours of a batch.
    compile: torch.compile the dense part of the encoder; the next run of the same architecture in this
    process need not wait for it again.
    """

    epochs: int = 100
    minutes: float | None = None
    patience: int = 20
    lr: float = 1e-3
    slow: float = 1.0
    weight_decay: float = 1e-4
    freeze: bool = False
    crystals: int | None = None
    pairs: int = 16_000
    seed: int = 0
    compile: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.patience < 1:
            raise TrainingError(f"epochs {self.epochs} and patience {self.patience} must be at least 1")


@dataclass(frozen=True)
class Epoch:
    """Losses of an epoch: mean over its batches, and on validation by the averaged weights (best: so far)."""

    epoch: int
    share: float
    loss: float
    validation: float
    best: float


def finetune(
    model: CrystalModel,
    objective: Task,
    data: PackedDataset,
    val: PackedDataset,
    config: FinetuneConfig,
) -> Iterator[Epoch]:
    """Train in place and yield after every epoch; when it ends, the model holds its best averaged weights.

    Without validation crystals (an empty set) the last weights are kept and nothing stops early.
    """
    size = config.crystals or max(8, min(64, len(data) // 50))
    plan = batches(model, data, config.pairs, size, config.seed)
    length = len(plan.epoch(0))  # other epochs' differ by a little beyond one window of `SizeBatches`
    settings = FitConfig(
        steps=max(1, config.epochs * length),
        minutes=config.minutes,
        lr=config.lr,
        slow=config.slow,
        weight_decay=config.weight_decay,
        seed=config.seed,
    )
    model.encoder.requires_grad_(not config.freeze)
    encoder: Any = model.encoder
    dense = config.compile and hasattr(encoder, "core")
    if dense:
        encoder.core = torch.compile(encoder.core, dynamic=True)
    watched = batches(model, val, 4 * config.pairs, 256, 0).epoch(0) if len(val) else []
    best, best_state, stale, epoch = math.inf, None, 0, 0
    losses: list[float] = []
    run: Run | None = None
    try:
        for run, found in fit(model, objective, data, plan, settings, autocast=False):
            losses.append(found["loss"])
            share = run.progress.share(settings)
            if run.progress.batch < length and share < 1:
                continue
            epoch, length = epoch + 1, len(plan.epoch(epoch + 1))
            share = 1.0 if epoch == config.epochs else share
            score = _score(model, run, objective, val, watched)
            stale = 0 if score < best or not watched else stale + 1
            if score < best or not watched or best_state is None:
                best, best_state = min(score, best), _averaged(model, run)
            yield Epoch(epoch, share, sum(losses) / len(losses), score, best)
            losses = []
            if stale >= config.patience or epoch == config.epochs:
                break
    finally:
        model.encoder.requires_grad_(True)
        if dense:
            del encoder.core  # the method is back
        if best_state is not None:
            model.load_state_dict(best_state)
        model.eval()


def _averaged(model: CrystalModel, run: Run) -> dict[str, Tensor]:
    with run.ema.applied(model):
        return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _score(model: CrystalModel, run: Run, objective: Task, val: PackedDataset, plan: list[Tensor]) -> float:
    """The objective's loss on the validation crystals as they are (no mirror images)."""
    if not plan:
        return math.inf
    plain, total = objective.watched(), 0.0
    generator = torch.Generator(device=run.device).manual_seed(0)  # the same chance every time
    model.eval()
    with run.ema.applied(model), torch.no_grad(), fast_autocast(run.device, False):
        for ids in plan:
            total += float(plain(model, val[ids].to(run.device), generator=generator)["loss"]) * len(ids)
    model.train()
    return total / len(val)
