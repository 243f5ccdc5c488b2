"""Energies, forces and stresses of frames away from equilibrium: mean absolute errors of a potential."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crystalml.benchmarks.csp import ModelLike, load
from crystalml.benchmarks.report import environment, show, write_json
from crystalml.benchmarks.store import fingerprint
from crystalml.benchmarks.targets import choose
from crystalml.datasets.arrays import Arrays, fractions, pack
from crystalml.datasets.crysdb import ENERGY, EV_PER_A3, dft_frames, fit_references, frames
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
    """MAE of energy (eV/atom), force components (eV/A) and stress entries (GPa) on CrysDB's frames.

    split "val" or "train": the labels are CHGNet's, so these are distances to CHGNet; energies are compared
    as formation energies. "dft": `dft_frames`, which are PBE's; energies are compared but for a constant of
    each element, fitted to the differences, and there are no stresses.
    """
    where = pick_device(device)
    loaded = load(model, where)
    data = dft_frames(root) if split == "dft" else frames(root, split)
    label = "energy_per_atom" if split == "dft" else ENERGY
    data = choose(data[np.isfinite(data.labels[label])], n, seed)
    start = time.perf_counter()
    error, force, stress = _errors(data, Predictor(loaded), label, progress)
    if split == "dft":
        shares = fractions(data)
        references, _ = fit_references(shares, error)
        error = error - shares @ np.nan_to_num(references)
    seconds = time.perf_counter() - start
    name = "PBE frames" if split == "dft" else f"labelled_{split}"
    result = {
        "benchmark": "forces",
        "frames": name,
        "model": loaded.card.get("name") or ("custom" if loaded is model else str(model)),
        "weights": fingerprint(loaded),
        "seed": seed,
        "crystals": len(data),
        "energy_mae": float(np.abs(error).mean()),
        "forces_mae": force,
        "stress_mae_gpa": stress,
        "seconds": seconds,
        "environment": environment(where),
    }
    if out is not None:
        write_json(Path(out), result)
    show(
        f"{result['model']} on {len(data)} frames: {name}",
        ["energy MAE eV/atom", "force MAE eV/A", "stress MAE GPa"],
        [
            (
                f"{result['energy_mae']:.4f}",
                f"{result['forces_mae']:.4f}",
                "" if stress is None else f"{stress:.3f}",
            )
        ],
        f"{len(data) / seconds:.3g} structures/s",
    )
    return result


def _errors(
    data: Arrays, predictor: Predictor, label: str, progress: bool
) -> tuple[NDArray[Any], float, float | None]:
    """Signed errors of the energy per atom (b,), and mean absolute ones of force components and stresses."""
    packed = pack(data, labels=(label, *({"stress"} & set(data.labels))))
    forces = torch.as_tensor(data.atom_labels["forces"]).split(data.num_atoms.tolist())
    energy, force, stress, atoms = np.zeros(len(data)), 0.0, 0.0, 0
    with ProgressBar(progress, "predicting") as bar:
        bar.add(len(data))
        for ids in torch.as_tensor(np.argsort(-data.num_atoms, kind="stable")).split(256):
            x = packed[ids]
            found = {name: value.cpu() for name, value in predictor(x).items()}
            energy[ids.numpy()] = (found["energy_per_atom"] - x.labels[label]).numpy()
            force += float((found["forces"] - torch.cat([forces[i] for i in ids.tolist()])).abs().sum())
            if "stress" in x.labels:
                stress += float((found["stress"] - x.labels["stress"]).abs().sum())
            atoms += len(x.numbers)
            bar.advance(len(ids))
    mean_stress = stress / (9 * len(data)) * EV_PER_A3 if "stress" in data.labels else None
    return energy, force / (3 * atoms), mean_stress
