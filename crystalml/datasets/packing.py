"""Training sets for the recipes, made from the CrysDB folder: what `crystalml pack` writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from crystalml.datasets.arrays import Arrays, pack
from crystalml.datasets.crysdb import ENERGY, ENERGY_FILLED, crysdb, fill_energy, frames
from crystalml.datasets.packed import PackedDataset

LABELS = ("energy", "energy_above_hull", "band_gap", "benchmark", "off_equilibrium")


def training_set(
    root: str | Path, split: str = "train", max_atoms: int | None = None, num_frames: int = 0, seed: int = 0
) -> PackedDataset:
    """CrysDB crystals, and with num_frames that many rattled or decorated frames, as one packed set.

    energy: formation energy per atom in eV, MP2020 scheme (`fill_energy`; for frames through
    `element_references`). off_equilibrium: 1 for frames, whose geometry is no sample of stable crystals.
    """
    crystals = fill_energy(crysdb(root, split, max_atoms), root)
    parts = [_labelled(crystals, crystals.labels[ENERGY_FILLED], 0.0)]
    if num_frames:
        pool = frames(root, split, max_atoms)
        usable = np.flatnonzero((pool.strings["kind"] != "equilibrium") & np.isfinite(pool.labels[ENERGY]))
        chosen = np.random.default_rng(seed).permutation(usable)[:num_frames]
        part = pool[np.sort(chosen)]
        parts.append(_labelled(part, part.labels[ENERGY], 1.0))
    return pack(Arrays.cat(parts))


def _labelled(data: Arrays, energy: np.ndarray, off_equilibrium: float) -> Arrays:
    labels = {name: data.labels[name] for name in LABELS if name in data.labels}
    labels |= {"energy": energy, "off_equilibrium": np.full(len(data), off_equilibrium, np.float32)}
    return replace(data, labels=labels, atom_labels={}, strings={})
