"""Energies, forces and stresses of frames away from equilibrium: mean absolute errors of a potential."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crystalml.benchmarks.csp import ModelLike, load, named
from crystalml.benchmarks.report import environment, show, write_json
from crystalml.benchmarks.targets import choose
from crystalml.crystal import EV_PER_A3
from crystalml.datasets.arrays import Arrays, fractions, pack
from crystalml.datasets.crysdb import ENERGY, dft_frames, fit_references, frames
from crystalml.device import pick_device
from crystalml.elements import covalent_radii
from crystalml.geometry.neighbors import neighbor_list
from crystalml.models.periodic import PeriodicConfig
from crystalml.predict import Predictor
from crystalml.progress import ProgressBar

CONTACT = PeriodicConfig.blind  # in sums of covalent radii


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
    each element, fitted to the differences, and there are no stresses. "apart": all but frames with atoms
    nearer than half the sum of their covalent radii, which see the universal repulsion alone and where few
    labels mean anything.
    """
    where = pick_device(device)
    loaded = load(model, where)
    data = dft_frames(root) if split == "dft" else frames(root, split)
    label = "energy_per_atom" if split == "dft" else ENERGY
    data = choose(data[np.isfinite(data.labels[label])], n, seed)
    start = time.perf_counter()
    found = _errors(data, Predictor(loaded), label, progress)
    if split == "dft":
        shares = fractions(data)
        references, _ = fit_references(shares, found["energy"])
        found["energy"] -= shares @ np.nan_to_num(references)
    seconds = time.perf_counter() - start
    kinds = data.strings.get("kind", np.full(len(data), "all"))
    parts = {kind: _means(data, found, kinds == kind) for kind in np.unique(kinds).tolist()}
    result = {
        "benchmark": "forces",
        "frames": "PBE frames" if split == "dft" else f"labelled_{split}",
        **named(loaded, model),
        "seed": seed,
        **_means(data, found, np.full(len(data), True)),
        "kinds": parts,
        "apart": _means(data, found, ~_touching(data)),
        "seconds": seconds,
        "environment": environment(where),
    }
    if out is not None:
        write_json(Path(out), result)
    _print(result)
    return result


def _errors(data: Arrays, predictor: Predictor, label: str, progress: bool) -> dict[str, NDArray[Any]]:
    """Of each frame: signed error of the energy per atom, sums of absolute ones of forces and stresses."""
    stressed = "stress" in data.labels
    packed = pack(data, labels=(label, "stress") if stressed else (label,))
    forces = torch.as_tensor(data.atom_labels["forces"]).split(data.num_atoms.tolist())
    found = {name: np.full(len(data), np.nan) for name in ("energy", "force", "stress")}
    with ProgressBar(progress, "predicting") as bar:
        bar.add(len(data))
        for ids in torch.as_tensor(np.argsort(-data.num_atoms, kind="stable")).split(256):
            x = packed[ids]
            out = {name: value.cpu() for name, value in predictor(x).items()}
            gaps = (out["forces"] - torch.cat([forces[i] for i in ids.tolist()])).abs().sum(-1).double()
            found["energy"][ids] = (out["energy_per_atom"] - x.labels[label]).numpy()
            found["force"][ids] = torch.zeros(len(x)).double().index_add(0, x.index, gaps).numpy()
            if stressed:
                found["stress"][ids] = (out["stress"] - x.labels["stress"]).abs().sum((1, 2)).numpy()
            bar.advance(len(ids))
    return found


def _touching(data: Arrays) -> NDArray[np.bool_]:
    """(b,) whether any two atoms of a frame are nearer than half the sum of their covalent radii."""
    radii, found = covalent_radii(), np.zeros(len(data), bool)
    packed, reach = pack(data), CONTACT * 2 * float(radii.max())
    for ids in torch.arange(len(data)).split(256):
        x = packed[ids]
        near = neighbor_list(x, reach)
        sums = radii[x.numbers[near.i]] + radii[x.numbers[near.j]]
        found[ids[x.index[near.i[near.distance < CONTACT * sums]].unique()]] = True
    return found


def _means(data: Arrays, found: dict[str, NDArray[Any]], rows: NDArray[np.bool_]) -> dict[str, Any]:
    stress = float(found["stress"][rows].mean()) / 9 * EV_PER_A3
    return {
        "crystals": int(rows.sum()),
        "energy_mae": float(np.abs(found["energy"][rows]).mean()),
        "forces_mae": float(found["force"][rows].sum()) / (3 * int(data.num_atoms[rows].sum())),
        "stress_mae_gpa": stress if np.isfinite(stress) else None,
    }


def _print(result: dict[str, Any]) -> None:
    parts = {"all": result, **(result["kinds"] if len(result["kinds"]) > 1 else {})}
    if result["apart"]["crystals"] < result["crystals"]:
        parts |= {"atoms apart": result["apart"]}
    rows = []
    for kind, part in parts.items():
        stress = part["stress_mae_gpa"]
        shown = f"{part['energy_mae']:.4f}", f"{part['forces_mae']:.4f}"
        rows.append((kind, part["crystals"], *shown, "" if stress is None else f"{stress:.3f}"))
    columns = ["", "frames", "energy MAE eV/atom", "force MAE eV/A", "stress MAE GPa"]
    title = f"{result['model']} on {result['frames']}"
    show(title, columns, rows, f"{result['crystals'] / result['seconds']:.3g} structures/s")
