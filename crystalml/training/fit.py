"""The optimisation loop, as an iterator: it yields logs, the caller shows bars and decides when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crystalml.crystal import CrystalBatch
from crystalml.datasets.packed import PackedDataset, SizeBatches
from crystalml.errors import TrainingError
from crystalml.models.layers import fast_autocast
from crystalml.training.checkpoint import read_tensors, write_tensors
from crystalml.training.ema import EMA


class Objective(Protocol):
    def __call__(
        self, model: Any, x: CrystalBatch, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class FitConfig:
    """Optimiser and schedule. The run ends at `steps` or after `minutes` of training, whichever is first.

    The learning rate rises linearly for a share `warmup` of the run and falls as a cosine to a
    hundredth; with `minutes` the share is measured in time, so that a run of any length is a whole one.
    slow: the rate of the encoder as a share of the others', for weights that know something already.
    optimizer: "adamw", or "muon" for the weight matrices (orthogonalised momentum, steps as long as AdamW's)
    with AdamW for all else: fewer steps to the same errors, each a little longer; needs torch >= 2.9.
    """

    steps: int | None = None
    minutes: float | None = None
    lr: float = 1e-3
    slow: float = 1.0
    weight_decay: float = 0.0
    warmup: float = 0.02
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    checkpoint_seconds: float = 120.0
    optimizer: Literal["adamw", "muon"] = "adamw"

    def __post_init__(self) -> None:
        if self.steps is None and self.minutes is None:
            raise TrainingError("a run needs an end: give steps or minutes")
        if self.optimizer not in ("adamw", "muon"):
            raise TrainingError(f"unknown optimizer {self.optimizer!r}; choose adamw or muon")
        if self.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
            raise TrainingError(f'"muon" needs torch >= 2.9, this is {torch.__version__}; use "adamw"')


@dataclass(frozen=True)
class Progress:
    """Where a run stands: optimiser steps, place in the data, seconds trained, crystals seen."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    crystals: int = 0

    def share(self, config: FitConfig) -> float:
        by_step = self.step / config.steps if config.steps else 0.0
        by_time = self.seconds / (60 * config.minutes) if config.minutes else 0.0
        return min(max(by_step, by_time), 1.0)


def learning_rate(config: FitConfig, share: float) -> float:
    """Linear warm-up, then cosine to 1 % of the peak."""
    if share < config.warmup:
        return config.lr * (share / config.warmup * 0.99 + 0.01)
    x = (share - config.warmup) / (1 - config.warmup)
    return config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * x)))


def optimizers(model: nn.Module, config: FitConfig) -> list[torch.optim.Optimizer]:
    """What updates the weights: matrices decay, vectors do not, the encoder may go slower.

    Embeddings and last layers are no maps from one hidden space to another: AdamW keeps them, as it keeps
    vectors and what has three axes, beside Muon (Jordan et al. 2024; lengths of steps: Liu et al. 2025).
    """
    embeddings = {p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        matrix = p.dim() == 2 and min(p.shape) > 1 and p not in embeddings
        decay = config.weight_decay if p.dim() > 1 else 0.0
        share = config.slow if name.startswith("encoder.") else 1.0
        groups.setdefault((matrix and config.optimizer == "muon", decay, share), []).append(p)
    parts: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for (muon, decay, share), params in groups.items():
        parts[muon].append({"params": params, "weight_decay": decay, "share": share})
    found: list[torch.optim.Optimizer] = []
    if parts[False]:
        found.append(torch.optim.AdamW(parts[False], lr=config.lr, betas=(0.9, 0.99), fused=True))
    if parts[True]:
        found.append(torch.optim.Muon(parts[True], lr=config.lr, adjust_lr_fn="match_rms_adamw"))
    return found


_FREE = ("steps", "minutes", "checkpoint_seconds")  # what a run that goes on may change


class Run:
    """Model, optimiser, average and progress of one training run; saved and restored whole."""

    def __init__(
        self, model: nn.Module, config: FitConfig, path: Path | None, crystals: int | None = None
    ) -> None:
        self.model, self.config, self.path = model, config, path
        self.settings = {"crystals": crystals, **{k: v for k, v in asdict(config).items() if k not in _FREE}}
        self.device = next(model.parameters()).device
        self.optimizers = optimizers(model, config)
        self.ema = EMA(model, config.ema)
        self.progress = Progress()
        if path is not None and path.exists():
            self._restore(path)

    def save(self) -> None:
        """Write the whole state atomically."""
        if self.path is None:
            return
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.shadow.items()}
        for name, p in self.model.named_parameters():
            for optimizer in self.optimizers:
                for key, value in optimizer.state.get(p, {}).items():
                    tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
        meta = {name: getattr(self.progress, name) for name in Progress.__dataclass_fields__}
        about = {"progress": meta, "ema_updates": self.ema.updates, "settings": self.settings}
        write_tensors(self.path, tensors, about)

    def _restore(self, path: Path) -> None:
        tensors, meta = read_tensors(path)

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        for name, value in (meta.get("settings") or {}).items():
            if name in self.settings and value != self.settings[name]:
                raise TrainingError(
                    f"{path} was begun with {name} {value}, not {self.settings[name]}: go on with the same "
                    "settings, or choose another output folder"
                )
        try:
            self.model.load_state_dict(part("model."))
            self.ema.load(part("ema."), meta["ema_updates"])
            self.progress = Progress(**meta["progress"])
        except (RuntimeError, KeyError, TypeError) as error:
            raise TrainingError(
                f"{path} is the state of a different run ({error}); choose another output folder"
            ) from error
        parameters = dict(self.model.named_parameters())
        owner = {p: o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        for key, value in part("optimizer.").items():
            moment, name = key.split(".", 1)
            p = parameters[name]
            owner[p].state[p][moment] = value.to(self.device)

    def step(self, losses: dict[str, Tensor]) -> bool:
        """Backward and update; a non-finite loss or gradient skips the update and says so."""
        rate = learning_rate(self.config, self.progress.share(self.config))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["share"] * rate
        self.model.zero_grad(set_to_none=True)
        losses["loss"].backward()
        average_gradients(self.model)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if not bool(norm.isfinite()):
            return False
        for optimizer in self.optimizers:
            optimizer.step()
        self.ema.update(self.model)
        return True


def average_gradients(model: nn.Module) -> None:
    """Replace gradients by their mean over all processes, in one message; alone, nothing happens.

    DistributedDataParallel would do so on the way back through its own forward pass, which a potential's
    forces do not go through.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([g.flatten() for g in grads]) / dist.get_world_size()
    dist.all_reduce(flat)
    for p, g in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = g.view_as(p)


def _agreed(seconds: float, device: torch.device) -> float:
    """The first process's clock for all: else rates would differ, and one would stop while others wait."""
    clock = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.broadcast(clock, 0)
    return float(clock)


def fit(
    model: nn.Module,
    objective: Objective,
    data: PackedDataset,
    batches: SizeBatches,
    config: FitConfig,
    *,
    state: str | Path | None = None,
    autocast: bool | None = None,
) -> Iterator[tuple[Run, dict[str, float]]]:
    """Train and yield (run, losses) after every step; `run.ema` holds the averaged weights.

    With `state` the run is saved there every `checkpoint_seconds` and at the end, and goes on from there
    if the file exists: batches and noise are functions of (seed, step), so nothing is lost or repeated.
    Under torchrun every process takes its share of each epoch's batches and gradients are averaged. A run
    that goes on with another number of processes deals the epoch under way out anew: some of its crystals
    come twice, others not before the next epoch.
    """
    run = Run(model, config, Path(state) if state is not None else None, len(data))
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if world > 1:
        for value in model.state_dict().values():
            dist.broadcast(value, 0)
    generator = torch.Generator(device=run.device)
    skipped, saved, last = 0, time.monotonic(), time.monotonic()
    model.train()
    while run.progress.share(config) < 1:
        plan = batches.epoch(run.progress.epoch, world)[rank::world]
        for ids in plan[run.progress.batch :]:
            generator.manual_seed((config.seed * 7919 + run.progress.step) * world + rank)
            x = data[ids].to(run.device)
            with fast_autocast(run.device, autocast):
                losses = objective(model, x, generator=generator)
            done = run.step(losses)
            skipped = 0 if done else skipped + 1
            if skipped > 20:
                raise TrainingError(
                    f"20 non-finite gradients in a row at step {run.progress.step}; lower the learning rate"
                )
            now = time.monotonic()
            p = run.progress
            seconds = p.seconds + now - last
            run.progress = replace(
                p,
                step=p.step + 1,
                batch=p.batch + 1,
                seconds=_agreed(seconds, run.device) if world > 1 else seconds,
                crystals=p.crystals + len(x) * world,
            )
            last = now
            yield run, {name: value.item() for name, value in losses.items()}
            if rank == 0 and now - saved > config.checkpoint_seconds:
                run.save()  # after the yield: what is saved as trained has been dealt with by the caller
                saved = now
            if run.progress.share(config) >= 1:
                break
        else:
            run.progress = replace(run.progress, epoch=run.progress.epoch + 1, batch=0)
    if rank == 0:
        run.save()
