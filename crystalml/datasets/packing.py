"""Training sets for the recipes, made from the CrysDB folder: what `crystalml pack` writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from crystalml.datasets.arrays import Arrays, pack
from crystalml.datasets.crysdb import BENCHMARKS, ENERGY, ENERGY_FILLED, crysdb, fill_energy, frames
from crystalml.datasets.packed import PackedDataset
from crystalml.errors import InputError

MAX_GAP = 0.25  # eV/atom between a frame's label and DFT's for the same crystal
LABELS = ("energy", "energy_above_hull", "band_gap", "benchmark", "off_equilibrium")


def training_set(
    root: str | Path,
    split: str = "train",
    max_atoms: int | None = None,
    num_frames: int = 0,
    seed: int = 0,
    *,
    benchmark: str | None = None,
    labelled: bool = False,
    forces: bool = False,
    align: bool = False,
    minima: bool = False,
) -> PackedDataset:
    """CrysDB crystals, and with num_frames that many labelled frames, as one packed set.

    energy: formation energy per atom in eV, MP2020 scheme (`fill_energy`; for frames through
    `element_references`). off_equilibrium: 1 for frames, whose geometry is no sample of stable crystals.
    benchmark: keep only crystals of this official set (`BENCHMARKS`). labelled: only those with an energy.
    Frames are rattled or decorated ones; with forces the undistorted are among them too, and frames carry
    `forces` (n, 3) in eV/A and `stress` (b, 3, 3) in eV/A^3, which are NaN in crystals.
    align: see `_aligned`. minima: crystals carry forces and stresses of zero, since DFT relaxed them.
    parent: a number for each crystal and all frames made from it, so that a set can be cut between families.
    """
    if benchmark is not None and benchmark not in BENCHMARKS[1:]:
        raise InputError(f"unknown benchmark {benchmark!r}; choose from {', '.join(BENCHMARKS[1:])}")
    crystals = fill_energy(crysdb(root, split, max_atoms), root)
    keep = np.ones(len(crystals), bool)
    if benchmark is not None:
        keep &= crystals.labels["benchmark"] == BENCHMARKS.index(benchmark)
    if labelled:
        keep &= np.isfinite(crystals.labels[ENERGY_FILLED])
    crystals = crystals[keep]
    if minima:
        crystals = _at_rest(crystals)
    parts = [_labelled(crystals, crystals.labels[ENERGY_FILLED], 0.0, minima)]
    if num_frames:
        pool = frames(root, split, max_atoms)
        moved = forces | (pool.strings["kind"] != "equilibrium")
        usable = np.flatnonzero(moved & np.isfinite(pool.labels[ENERGY]))
        chosen = np.random.default_rng(seed).permutation(usable)[:num_frames]
        part = pool[np.sort(chosen)]
        if align:
            part = _aligned(part, pool, crystals)
        parts.append(_labelled(part, part.labels[ENERGY], 1.0, forces))
    data = Arrays.cat(parts)
    parent = np.unique(data.ids, return_inverse=True)[1].astype(np.float32)
    return pack(replace(data, labels={**data.labels, "parent": parent}))


def _at_rest(crystals: Arrays) -> Arrays:
    """Crystals with zero forces (n, 3) and stresses (b, 3, 3).

    DFT relaxed them until energies settled: both are small, if not quite zero, and say where minima lie.
    """
    atoms, cells = len(crystals.numbers), len(crystals)
    labels = {**crystals.labels, "stress": np.zeros((cells, 3, 3), np.float32)}
    return replace(crystals, labels=labels, atom_labels={"forces": np.zeros((atoms, 3), np.float32)})


def _aligned(part: Arrays, pool: Arrays, crystals: Arrays) -> Arrays:
    """Frames with energies moved, crystal by crystal, so that the undistorted one has its DFT energy.

    Frames are labelled by a model that misses DFT energies by a constant of each crystal (0.03 eV/atom in the
    mean), which a network fitted to both kinds of label would turn into false curvature. Decorated frames,
    which have no crystal of their own, stay, and so do those whose two labels lie too far apart to mean the
    same state.
    """
    known = dict(zip(crystals.ids, crystals.labels[ENERGY_FILLED].tolist(), strict=True))
    rest = pool[pool.strings["kind"] == "equilibrium"]
    gaps = {
        name: known.get(name, np.nan) - energy
        for name, energy in zip(rest.ids, rest.labels[ENERGY].tolist(), strict=True)
    }
    gap = np.array([gaps.get(name, np.nan) for name in part.ids])
    gap[(part.strings["kind"] == "decorated") | ~(np.abs(gap) < MAX_GAP)] = 0.0
    energy = (part.labels[ENERGY] + gap).astype(np.float32)
    return replace(part, labels={**part.labels, ENERGY: energy})


def _labelled(data: Arrays, energy: np.ndarray, off_equilibrium: float, forces: bool = False) -> Arrays:
    labels = {name: data.labels[name] for name in LABELS if name in data.labels}
    labels |= {"energy": energy, "off_equilibrium": np.full(len(data), off_equilibrium, np.float32)}
    atoms = {}
    if forces:
        labels["stress"], atoms["forces"] = data.labels["stress"], data.atom_labels["forces"]
    return replace(data, labels=labels, atom_labels=atoms, strings={})
