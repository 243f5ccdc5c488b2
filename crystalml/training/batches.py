"""Batches of about equal cost for any network."""

from __future__ import annotations

import torch

from crystalml.datasets.packed import PackedDataset, SizeBatches
from crystalml.models.fourierframenet import FourierFrameNet
from crystalml.models.model import CrystalModel
from crystalml.models.periodic import PeriodicCrysformer


def batches(model: CrystalModel, data: PackedDataset, budget: int, crystals: int, seed: int) -> SizeBatches:
    """By padded pairs of all atoms; for a model with a cutoff by the neighbours expected from the density."""
    neighbors, forces = None, None
    if isinstance(model.encoder, PeriodicCrysformer | FourierFrameNet):
        density = data.num_atoms / torch.linalg.det(data.lattice).abs()
        neighbors = 4.19 * model.encoder.config.cutoff**3 * density
        if "stress" in data.labels:  # frames with forces apart: the others cost a third
            forces = data.labels["stress"].isfinite().flatten(1).all(-1)
    return SizeBatches(data.num_atoms, budget, crystals, seed=seed, neighbors=neighbors, kinds=forces)
