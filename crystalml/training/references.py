"""A first guess for the elements' energies, so that a network starts with what it has to explain."""

from __future__ import annotations

import torch

from crystalml.datasets.packed import PackedDataset
from crystalml.models.heads import AtomicEnergyHead
from crystalml.models.model import CrystalModel


@torch.no_grad()
def fit_shift(model: CrystalModel, data: PackedDataset, label: str = "energy", ridge: float = 1.0) -> float:
    """Set the shift of a potential's energy head: argmin_mu sum (y - mean_i mu[Z_i])^2 + ridge |mu|^2.

    y is the label in network units; elements without a labelled crystal get 0. Does nothing to other heads
    or without labels. Returns the fit's mean absolute error in network units.
    """
    head, scale = model.energy_head, model.config.energy
    if not isinstance(head, AtomicEnergyHead) or scale is None or label not in data.labels:
        return 0.0
    y = scale.to_network(data.labels[label].double())
    width, counts = len(head.shift), data.num_atoms.long()
    flat = torch.arange(len(data)).repeat_interleave(counts) * width + data.numbers.long()
    share = torch.bincount(flat, minlength=len(data) * width).view(-1, width) / counts[:, None].double()
    share, y = share[y.isfinite()], y[y.isfinite()]
    if not len(y):
        return 0.0
    normal = share.T @ share + ridge * torch.eye(width, dtype=share.dtype)
    shift = torch.linalg.solve(normal, share.T @ y)
    head.shift.copy_(shift.to(head.shift))
    return float((share @ shift - y).abs().mean())
