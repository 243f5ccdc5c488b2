"""Train a recipe on packed crystals: the work behind `crystalml train`."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from crystalml import recipes
from crystalml.crystal import CrystalBatch
from crystalml.datasets.packed import PackedDataset
from crystalml.elements import numbers_of, symbol
from crystalml.errors import InputError, TrainingError
from crystalml.models.derivatives import CompiledPotential
from crystalml.models.error_bar import with_error_bar
from crystalml.models.gemsnet import GemsNet, GemsNetConfig
from crystalml.models.layers import fast_autocast
from crystalml.models.model import CrystalModel
from crystalml.models.periodic import PeriodicConfig, PeriodicCrysformer
from crystalml.objectives.potential import Potential, known_rows
from crystalml.recipes import Recipe, Size
from crystalml.replacing import replacing
from crystalml.training.batches import batches
from crystalml.training.checkpoint import save_model
from crystalml.training.fit import FitConfig, Run, fit
from crystalml.training.references import fit_shift
from crystalml.weights import load_model
from crystalml.weights.registry import training_set

RECIPES: dict[str, Callable[[Size], Recipe]] = {
    "dao-g": recipes.dao_g,
    "dao-p-diffusion": recipes.dao_p_diffusion,
    "dao-p": recipes.dao_p,
    "diffcsp": recipes.diffcsp,
    "gemsdiff": recipes.gemsdiff,
    "gemsdiff-predict": partial(recipes.gemsdiff, lattice_mode="predict"),
    **{f"fourierframenet-{task}": partial(recipes.fourierframenet, task=task) for task in recipes.GEOSSL},
}


@dataclass(frozen=True)
class TrainConfig:
    """What a training run needs beside its data.

    recipe: by its name in `size`, or one of your own making.
    pairs: padded atom pairs a batch may hold (count x atoms^2, or for a potential atoms x neighbours), which
    bounds time and memory.
    init: weights to start from (fine-tuning), as `load_model` takes them; their architecture replaces `size`.
    moduli: crystals whose elastic moduli a potential learns beside (`crystalml pack-moduli`).
    bf16: matrix products of a compiled potential's slopes in bfloat16 while it learns; validation is in full.
    """

    recipe: str | Recipe
    out: Path
    size: Size = "small"
    fit: FitConfig = field(default_factory=lambda: FitConfig(minutes=10.0))
    pairs: int = 8_000
    max_crystals: int = 256
    max_atoms: int | None = None
    init: str | Path | None = None
    device: str = "cpu"
    compile: bool | None = None
    bf16: bool = False
    moduli: PackedDataset | None = None
    validations: int = 20


@dataclass(frozen=True)
class Log:
    """Where a run stands: losses averaged since the last milestone; there, also the validation losses."""

    run: Run
    losses: dict[str, float]
    milestone: bool = False
    validation: dict[str, float] = field(default_factory=dict)


def train(config: TrainConfig, data: PackedDataset, val: PackedDataset | None = None) -> Iterator[Log]:
    """Train and yield after every step; `config.validations` times on the way a milestone is written.

    In the folder `config.out`: state.safetensors, everything needed to go on, after a kill too (running the
    same command resumes); at milestones model.safetensors, the averaged weights, and log.csv, the losses.
    """
    recipe = _with_moduli(_recipe(config), config.moduli)
    data = _fitting(data, config.max_atoms, "training")
    val = _fitting(val, config.max_atoms, "validation") if val is not None else None
    if isinstance(recipe.objective, Potential):
        _labelled(recipe.objective, data, "training")
        if val is not None:
            _labelled(recipe.objective, val, "validation")
    config.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.fit.seed)  # initial weights only; every later draw has its own generator
    model = _start(config.init, recipe)
    if model.error_bar is not None:
        model = with_error_bar(model, None)  # new weights err in new ways
    if config.init is None:
        fit_shift(model, data)
    model.to(config.device).train()
    recipe = _compile(recipe, model, config)
    plan = batches(model, data, config.pairs, config.max_crystals, config.fit.seed)
    measure = _Validation(recipe, model, val, config)
    means, share = _Means(), -1.0
    chief = not dist.is_initialized() or dist.get_rank() == 0
    about = _about(model.card, data) if chief else {}
    run: Run | None = None
    state = config.out / "state.safetensors"
    for run, losses in fit(model, recipe.objective, data, plan, config.fit, state=state):
        means.add(losses)
        now = run.progress.share(config.fit)
        share = now if share < 0 else share
        if chief and (now >= 1 or now - share >= 1 / config.validations):
            log = Log(run, means.values(), True, measure(model, run))
            _write(config, recipe, model, log, len(data), about)
            run.save()
            means, share = _Means(), now
            yield log
        else:
            yield Log(run, means.values())
    if run is None:
        if not (config.out / "model.safetensors").exists():
            raise TrainingError(f"{state} says the run has ended, yet {config.out} holds no model")
        warnings.warn(
            f"the run in {config.out} had ended, nothing was trained: give it more minutes or steps to go "
            "on, or choose another folder",
            stacklevel=2,
        )


def _recipe(config: TrainConfig) -> Recipe:
    if isinstance(config.recipe, Recipe):
        return config.recipe
    if config.recipe not in RECIPES:
        raise InputError(f"unknown recipe {config.recipe!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[config.recipe](config.size)


def _with_moduli(recipe: Recipe, moduli: PackedDataset | None) -> Recipe:
    if moduli is None:
        return recipe
    if not isinstance(recipe.objective, Potential):
        raise InputError(f"moduli are for a potential (recipe dao-p), not for {recipe.name}: leave them out")
    if missing := {"bulk_modulus", "shear_modulus"} - set(moduli.labels):
        raise InputError(
            f"the moduli lack the labels {sorted(missing)}; make them with `crystalml pack-moduli`"
        )
    known = moduli.labels["bulk_modulus"].isfinite() & moduli.labels["shear_modulus"].isfinite()
    if not known.any():
        raise InputError("none of the crystals given as moduli has a known bulk and shear modulus")
    return replace(recipe, objective=replace(recipe.objective, moduli=moduli[known.nonzero()[:, 0]]))


def _start(init: str | Path | None, recipe: Recipe) -> CrystalModel:
    """New weights, or those to fine-tune, which have to know the recipe's noise.

    They keep their sizes, but a shallower GemsNet is given the recipe's depth and a smaller potential its
    depth, order and width of feed-forward networks: that is cheaper than to train a large one from the start.
    """
    if init is None:
        return recipe.model.build()
    model = load_model(init)
    theirs, ours = model.config.process, recipe.model.process
    if theirs != ours:
        raise InputError(
            f"{init} was trained on the noise called {theirs!r}, the recipe {recipe.name} has {ours!r}: "
            "fine-tune it by the recipe it came from, or start anew without --init"
        )
    net, wanted = model.encoder, recipe.model.encoder
    grown: GemsNet | PeriodicCrysformer
    if isinstance(net, GemsNet) and isinstance(wanted, GemsNetConfig) and wanted.depth > net.config.depth:
        grown = net.deepened(wanted.depth)
    elif isinstance(net, PeriodicCrysformer) and isinstance(wanted, PeriodicConfig):
        config = net.config
        grown = net.grown(
            replace(
                config,
                depth=max(config.depth, wanted.depth),
                hidden=max(config.hidden, wanted.hidden),
                order=max(config.order, wanted.order),
            )
        )
    else:
        return model
    model.encoder, model.config = grown, replace(model.config, encoder=grown.config)
    return model


def _fitting(data: PackedDataset, max_atoms: int | None, what: str) -> PackedDataset:
    data = data.up_to(max_atoms)
    if len(data) == 0:
        limit = "" if max_atoms is None else f" with at most {max_atoms} atoms"
        raise InputError(f"no {what} crystals{limit}")
    return data


def _labelled(objective: Potential, data: PackedDataset, what: str) -> None:
    """Refuse crystals that a potential can learn nothing from."""
    targets = (data.labels.get(objective.label), data.site_labels.get("forces"), data.labels.get("stress"))
    if not any(target is not None and bool(known_rows(target).any()) for target in targets):
        raise InputError(
            f"no {what} crystal has a known {objective.label!r}, 'forces' or 'stress' for a potential to "
            "learn from; `crystalml pack` or PackedDataset.from_arrays packs them"
        )


def _compile(recipe: Recipe, model: CrystalModel, config: TrainConfig) -> Recipe:
    """Compile what costs the time: a potential's derivative, the dense part of any other model."""
    encoder, objective = model.encoder, recipe.objective
    wanted = config.compile if config.compile is not None else next(model.parameters()).is_cuda
    if config.bf16 and not (wanted and isinstance(encoder, PeriodicCrysformer)):
        raise InputError(
            "bf16 is for a potential (recipe dao-p) that is compiled: add --compile, or leave it out"
        )
    if not wanted:
        return recipe
    if isinstance(encoder, PeriodicCrysformer):
        assert isinstance(objective, Potential)  # the one recipe of this encoder
        return replace(recipe, objective=replace(objective, compiled=CompiledPotential(model, config.bf16)))
    encoder.core = torch.compile(encoder.core, dynamic=True)  # type: ignore[method-assign, assignment, arg-type]
    return recipe


class _Means:
    """Weighted means of named numbers, each over the times it was named."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, float]] = {}

    def add(self, values: Mapping[str, float], weights: Mapping[str, float] | None = None) -> None:
        for name, value in values.items():
            total, count = self.sums.get(name, (0.0, 0.0))
            weight = 1.0 if weights is None else weights[name]
            self.sums[name] = (total + weight * value, count + weight)

    def values(self) -> dict[str, float]:
        return {name: total / count for name, (total, count) in self.sums.items() if count}


def _rows(x: CrystalBatch, names: Iterable[str]) -> dict[str, float]:
    """How many rows each mean is over: those whose label of this name is known, or all crystals."""
    tables = {**x.labels, **x.site_labels}
    return {
        name: float(known_rows(tables[name]).sum()) if name in tables else float(len(x)) for name in names
    }


class _Validation:
    """The objective on held-out crystals with the averaged weights; same noise every time."""

    def __init__(
        self, recipe: Recipe, model: CrystalModel, val: PackedDataset | None, config: TrainConfig
    ) -> None:
        self.objective, self.val, self.config = recipe.objective, val, config
        self.plan = batches(model, val, 4 * config.pairs, 1024, 0).epoch(0) if val is not None else []

    def __call__(self, model: CrystalModel, run: Run) -> dict[str, float]:
        if self.val is None:
            return {}
        generator = torch.Generator(device=run.device).manual_seed(0)
        means = _Means()
        model.eval()
        with run.ema.applied(model), torch.no_grad(), fast_autocast(run.device):
            for ids in self.plan:
                x = self.val[ids].to(run.device)
                losses = self.objective(model, x, generator=generator)
                means.add({name: float(value) for name, value in losses.items()}, _rows(x, losses))
        model.train()
        return means.values()


def _write(
    config: TrainConfig, recipe: Recipe, model: CrystalModel, log: Log, crystals: int, about: dict[str, Any]
) -> None:
    progress, path = log.run.progress, config.out / "log.csv"
    row = {
        "step": progress.step,
        "epoch": progress.epoch,
        "minutes": round(progress.seconds / 60, 3),
        "crystals": progress.crystals,
        **{name: round(value, 6) for name, value in log.losses.items()},
        **{f"val_{name}": round(value, 6) for name, value in log.validation.items()},
    }
    _append(path, row)
    _tensorboard(config.out, row)
    fit_settings = {k: v for k, v in asdict(config.fit).items() if k != "checkpoint_seconds"}
    card: dict[str, Any] = {
        **about,
        "recipe": recipe.name,
        "training": {**row, "train_crystals": crystals, **fit_settings, "pairs": config.pairs},
    }
    with log.run.ema.applied(model):
        save_model(model, config.out / "model.safetensors", card)


def _about(before: Mapping[str, Any], data: PackedDataset) -> dict[str, Any]:
    """What the card says of the crystals; before: that of the weights a run begins with, if any."""
    known = training_set(data)
    seen = numbers_of(known["elements"]) | numbers_of(before.get("elements"))
    return {
        **known,
        "elements": [symbol(z) for z in sorted(seen)],
        "max_atoms": max(known["max_atoms"], before.get("max_atoms") or 0),
        "energy": before.get("energy"),
    }


def _append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row under the table's own columns, empty where it has no value; new columns go to the right."""
    table: list[list[Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            table = list(csv.reader(file))
    header = table[0] if table else []
    names = header + [name for name in row if name not in header]
    if header:  # of a run that was killed, what is trained once more
        table[1:] = [old for old in table[1:] if int(old[header.index("step")]) < row["step"]]
    table = [
        names,
        *(old + [""] * (len(names) - len(old)) for old in table[1:]),
        [row.get(n, "") for n in names],
    ]
    with replacing(path) as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows(table)


def _tensorboard(folder: Path, row: dict[str, Any]) -> None:
    """Mirror the CSV line where TensorBoard is installed (extra `log`)."""
    with suppress(ImportError):
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(folder / "tensorboard")) as writer:  # type: ignore[no-untyped-call]
            for name, value in row.items():
                writer.add_scalar(name, value, row["step"])  # type: ignore[no-untyped-call]


@contextmanager
def distributed(device: str) -> Iterator[str]:
    """Join the process group when started by torchrun; gives this process's device."""
    if "LOCAL_RANK" not in os.environ:
        yield device
        return
    cuda = device.startswith("cuda")
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield f"cuda:{os.environ['LOCAL_RANK']}" if cuda else device
        dist.barrier()  # the process that keeps the group's store must not leave while others work
    finally:
        dist.destroy_process_group()
