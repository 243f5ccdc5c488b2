"""Energies, forces and stresses of labelled frames: mean absolute errors of a potential."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crystalml.benchmarks.csp import ModelLike, load
from crystalml.benchmarks.report import environment, show, write_json
from crystalml.benchmarks.store import fingerprint
from crystalml.benchmarks.targets import choose
from crystalml.datasets.arrays import pack
from crystalml.datasets.crysdb import ENERGY, EV_PER_A3, frames
from crystalml.device import pick_device
from crystalml.predict import Predictor
from crystalml.progress import ProgressBar


def run(
    root: str | Path,
    model: ModelLike = "dao-p",
    *,
    split: str = "val",
    n: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """MAE of energy (eV/atom), force components (eV/A) and stress entries (GPa) on CrysDB's labelled frames.

    The labels are CHGNet's, so these are distances to CHGNet. Energies are compared as formation energies.
    """
    where = pick_device(device)
    loaded = load(model, where)
    data = frames(root, split)
    data = choose(data[np.isfinite(data.labels[ENERGY])], n, seed)
    predictor, packed = Predictor(loaded), pack(data, labels=(ENERGY, "stress"))
    forces = torch.as_tensor(data.atom_labels["forces"]).split(data.num_atoms.tolist())
    energy, force, stress, atoms, start = 0.0, 0.0, 0.0, 0, time.perf_counter()
    with ProgressBar(progress, "predicting") as bar:
        bar.add(len(data))
        for ids in torch.as_tensor(np.argsort(-data.num_atoms, kind="stable")).split(256):
            x = packed[ids]
            found = {name: value.cpu() for name, value in predictor(x).items()}
            energy += float((found["energy_per_atom"] - x.labels[ENERGY]).abs().sum())
            force += float((found["forces"] - torch.cat([forces[i] for i in ids.tolist()])).abs().sum())
            stress += float((found["stress"] - x.labels["stress"]).abs().sum())
            atoms += len(x.numbers)
            bar.advance(len(ids))
    seconds = time.perf_counter() - start
    result = {
        "benchmark": "forces",
        "frames": f"labelled_{split}",
        "model": loaded.card.get("name") or ("custom" if loaded is model else str(model)),
        "weights": fingerprint(loaded),
        "seed": seed,
        "crystals": len(data),
        "energy_mae": energy / len(data),
        "forces_mae": force / (3 * atoms),
        "stress_mae_gpa": stress / (9 * len(data)) * EV_PER_A3,
        "seconds": seconds,
        "environment": environment(where),
    }
    if out is not None:
        write_json(Path(out), result)
    show(
        f"{result['model']} on {len(data)} frames of labelled_{split}",
        ["energy MAE eV/atom", "force MAE eV/A", "stress MAE GPa"],
        [(f"{result['energy_mae']:.4f}", f"{result['forces_mae']:.4f}", f"{result['stress_mae_gpa']:.3f}")],
        f"{len(data) / seconds:.3g} structures/s",
    )
    return result
