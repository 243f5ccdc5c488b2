"""The encoders of CrysDiff's ablations (Figure 5), pretrained at one size on equally many crystals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from crystalml.crystal import CrystalBatch
from crystalml.datasets.arrays import pack
from crystalml.datasets.crysdb import crysdb
from crystalml.datasets.packed import PackedDataset
from crystalml.elements import symbol
from crystalml.geometry.torus import wrap
from crystalml.models.cspnet import CSPNetConfig
from crystalml.models.model import CrystalModel, EncoderConfig, averaged
from crystalml.objectives.denoising import Denoising
from crystalml.progress import ProgressBar
from crystalml.recipes import Recipe, Size, diffcsp
from crystalml.testing import random_rotation
from crystalml.train import TrainConfig, train
from crystalml.training.batches import batches
from crystalml.training.checkpoint import load_model_file
from crystalml.training.fit import FitConfig

VARIANTS: dict[str, tuple[str, ...]] = {
    "joint": ("joint",),
    "separate": ("lattice", "frac"),
    "non-equivariant": ("raw",),
    "untrained": (),
}
"""The networks of each: two are trained apart, each on its part of the noise, and averaged afterwards."""
PAIRS, CRYSTALS = 4_000, 256  # of a batch: a short run needs many steps


def network(part: str, size: Size) -> Recipe:
    """How one network is pretrained: CSPNet as in the recipe diffcsp but for what `part` says."""
    recipe = diffcsp(size)
    encoder, objective = recipe.model.encoder, recipe.objective
    assert isinstance(encoder, CSPNetConfig) and isinstance(objective, Denoising)
    if part == "raw":
        return replace(recipe, model=replace(recipe.model, encoder=replace(encoder, metric="raw")))
    if part in ("lattice", "frac"):
        return replace(recipe, objective=replace(objective, only=part))  # type: ignore[arg-type]
    return recipe


def pretrain(
    names: Sequence[str],
    data: PackedDataset,
    crystals: int,
    size: Size,
    folder: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, CrystalModel | EncoderConfig]:
    """The encoders of these variants. A folder for each network keeps it; stopped, the same call goes on.

    crystals: shown to every network, in the same order; separate ones see that many each, at twice the cost.
    """
    out: dict[str, CrystalModel | EncoderConfig] = {}
    for name in names:
        models = []
        for part in VARIANTS[name]:
            recipe, here = network(part, size), folder / part
            epoch = len(batches(recipe.model.build(), data, PAIRS, CRYSTALS, seed).epoch(0))
            fit = FitConfig(steps=math.ceil(crystals * epoch / len(data)), seed=seed)
            config = TrainConfig(recipe, here, size, fit, PAIRS, CRYSTALS, device=device, validations=4)
            with ProgressBar(progress, f"pretraining {part}") as bar:
                bar.add(fit.steps or 0)
                for _ in train(config, data):
                    bar.advance(1)
            models.append(load_model_file(here / "model.safetensors"))
            models[-1].card["elements"] = [symbol(z) for z in data.numbers.unique().tolist()]
        if not models:
            out[name] = diffcsp(size).model.encoder
        else:
            out[name] = models[0] if len(models) == 1 else averaged(models)
    return out


def corpus(root: str | Path, max_atoms: int | None = None) -> PackedDataset:
    """CrysDB's training crystals, without labels."""
    return pack(crysdb(root, "train", max_atoms), labels=())


def moved(x: CrystalBatch, seed: int = 0) -> CrystalBatch:
    """The same crystals, each turned at random and with its origin elsewhere."""
    turn = torch.stack([random_rotation(seed + k, dtype=x.dtype) for k in range(len(x))])
    shift = torch.rand(len(x), 3, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    return x.replace(lattice=x.lattice @ turn, frac=wrap(x.frac + shift[x.index]))
