"""Stage II of DAO's training data: unstable crystals led towards the minima of a potential (DAO, Fig. 1)."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.datasets.arrays import standard_orientation
from crystalml.datasets.packed import PackedDataset
from crystalml.device import pick_device
from crystalml.elements import atomic_number
from crystalml.errors import CellError, InputError, NonFiniteError
from crystalml.geometry.neighbors import neighbor_list
from crystalml.journal import Journal
from crystalml.metrics.validity import MIN_DISTANCE
from crystalml.models.model import CrystalModel
from crystalml.predict import Predictor
from crystalml.progress import ProgressBar
from crystalml.relax import batch_relaxer
from crystalml.relaxation.batch import Frame, Relaxed
from crystalml.relaxation.settings import RelaxSettings
from crystalml.weights import DEFAULT_POTENTIAL, as_model
from crystalml.weights.registry import fingerprint

Row = dict[str, Any]
WINDOW = (0.08, 0.5)  # eV/atom above the hull; up to 0.08 a crystal counts as stable (DAO, section 2.1)
STEPS = 5  # L-BFGS, max_iter = 5 (DAO, appendix); its lr = 1 is the whole quasi-Newton step, as ours is
MAX_SWELLING = 0.25  # relative change of volume beyond which the potential is not believed
KEEP_LABELS = ("benchmark", "off_equilibrium", "parent")  # what does not depend on the geometry
ROWS = "relaxed.jsonl"
_CHUNK = 1024


@dataclass(frozen=True)
class RelaxedData:
    """data: all crystals in their order, with the label `relaxed` (1: moved, 0: as given). rows: one for each
    crystal of the window, by its place; `kept` says why it stayed as it was, "" if it moved.
    """

    data: PackedDataset
    rows: list[Row]

    def summary(self) -> dict[str, Any]:
        """moved, kept (reason -> count) and the mean fall of the energy of moved ones in eV/atom."""
        falls = [row["before"] - row["after"] for row in self.rows if not row["kept"]]
        return {
            "moved": len(falls),
            "kept": dict(Counter(row["kept"] for row in self.rows if row["kept"]).most_common()),
            "mean_fall": float(np.mean(falls)) if falls else math.nan,
        }


def relax_data(
    data: PackedDataset,
    model: str | Path | CrystalModel = DEFAULT_POTENTIAL,
    *,
    window: tuple[float, float] = WINDOW,
    max_steps: int = STEPS,
    folder: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> RelaxedData:
    """Relax the crystals whose label `energy_above_hull` lies in the window: low < E <= high, eV/atom.

    Atoms and cell take at most max_steps L-BFGS steps downhill in f(M, 0), in float64 coordinates; the lowest
    point of the path counts. The crystal stays as it was if the energy does not fall, is not finite anywhere,
    the volume changes by more than a quarter, or atoms (images included) come closer than 0.5 Angstrom; also
    if the model does not know its elements. What moved is upright again and has NaN for all labels that were
    computed for the old geometry, so a potential never learns an energy of the wrong crystal.

    folder: where rows are kept as they come; the same call goes on where it was stopped. Raises InputError
    for data without that label, a window that is none, or a folder of other settings.
    """
    energy = _energies(data, window)
    where = pick_device(device)
    potential = as_model(model, where, torch.float32)
    settings = {
        "data": _digest(data), "weights": fingerprint(potential), "window": list(window),
        "max_steps": max_steps,
    }  # fmt: skip
    journal = Journal(Path(folder), ROWS) if folder is not None else None
    rows = {row["crystal"]: row for row in journal.open(settings)} if journal else {}
    chosen = ((energy > window[0]) & (energy <= window[1])).nonzero()[:, 0]
    todo = chosen[data.num_atoms[chosen].argsort(stable=True)].tolist()  # alike crystals share a batch
    todo = [i for i in todo if i not in rows]
    with ProgressBar(progress, "relaxing") as bar:
        bar.add(len(chosen))
        bar.advance(len(chosen) - len(todo))
        for row in _relax(data, todo, potential, max_steps):
            if journal:
                journal.append([row])
            rows[row["crystal"]] = row
            bar.advance(1)
    ordered = [rows[i] for i in sorted(rows)]
    return RelaxedData(_moved(data, ordered), ordered)


def _energies(data: PackedDataset, window: tuple[float, float]) -> Tensor:
    if not (math.isfinite(window[0]) and window[0] < window[1]):
        raise InputError(f"the window must be low < high in eV/atom above the hull, not {list(window)}")
    if "energy_above_hull" not in data.labels:
        raise InputError(
            f"the data have the labels {', '.join(data.labels) or 'none'}; relaxing unstable crystals needs "
            "`energy_above_hull` (eV/atom), which `crystalml pack` adds"
        )
    return data.labels["energy_above_hull"].float()


def _digest(data: PackedDataset) -> str:
    found = hashlib.blake2b(digest_size=16)
    parts = (data.numbers, data.frac, data.lattice, data.num_atoms, data.labels["energy_above_hull"])
    for value in parts:
        found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()


def _relax(data: PackedDataset, todo: Sequence[int], model: CrystalModel, max_steps: int) -> Iterator[Row]:
    """A row of each crystal as soon as it is done."""
    known = torch.tensor([atomic_number(name) for name in model.card.get("elements") or ()])
    weight = next(model.parameters())
    able: list[int] = []

    def stream() -> Iterator[CrystalBatch]:
        for start in range(0, len(todo), _CHUNK):
            part = todo[start : start + _CHUNK]
            x = data[part].replace(labels={}, site_labels={}).to(weight.device, torch.float64)
            for i, one in zip(part, x.split(), strict=True):
                if len(known) == 0 or bool(torch.isin(one.numbers.cpu(), known).all()):
                    able.append(i)
                    yield one
                else:
                    strangers.append(i)

    strangers: list[int] = []
    settings = RelaxSettings(fmax=0.01, max_steps=max_steps, trajectory=True)
    for place, result in batch_relaxer(Predictor(model), settings).run(stream()):
        yield _row(able[place], result)
    yield from ({"crystal": i, "kept": "elements unknown to the model"} for i in strangers)


def _row(crystal: int, result: Relaxed) -> Row:
    frames = result.frames
    if result.error is not None or not frames:
        return {"crystal": crystal, "kept": "energy or forces not finite"}
    best = min(frames, key=lambda frame: frame.energy)
    n = float(best.crystal.num_atoms)
    row: Row = {"crystal": crystal, "before": frames[0].energy / n, "after": best.energy / n}
    if reason := _guard(frames[0], best):
        return {**row, "kept": reason}
    frac, lattice = (
        [round(value, 7) for value in field.flatten().tolist()]
        for field in (best.crystal.frac, best.crystal.lattice)
    )
    return {**row, "kept": "", "frac": frac, "lattice": lattice}


def _guard(start: Frame, end: Frame) -> str:
    """Why the relaxed crystal is not believed; "" if it is."""
    if not end.energy < start.energy:
        return "energy does not fall"
    if abs(float(end.crystal.volume / start.crystal.volume) - 1) > MAX_SWELLING:
        return "volume changes by more than a quarter"
    try:
        close = len(neighbor_list(end.crystal, MIN_DISTANCE).i) > 0
    except (CellError, NonFiniteError):
        return "cell collapses"
    return f"atoms closer than {MIN_DISTANCE} A" if close else ""


def _moved(data: PackedDataset, rows: Sequence[Row]) -> PackedDataset:
    """The data with the crystals of the rows in their new places."""
    moved = [row for row in rows if not row["kept"]]
    places = torch.tensor([row["crystal"] for row in moved], dtype=torch.long)
    flag = torch.zeros(len(data))
    flag[places] = 1
    if not moved:
        return replace(data, labels={**data.labels, "relaxed": flag})
    counts = data.num_atoms.long()
    index = np.repeat(np.arange(len(moved)), counts[places].numpy())
    cells = np.array([row["lattice"] for row in moved]).reshape(-1, 3, 3)
    coordinates = np.concatenate([np.reshape(row["frac"], (-1, 3)) for row in moved])
    cells, coordinates, _ = standard_orientation(cells, coordinates, index)
    atoms = flag.bool().repeat_interleave(counts)  # rows come by place, and so do their atoms
    lattice, frac = data.lattice.clone(), data.frac.clone()
    lattice[places] = torch.as_tensor(cells, dtype=lattice.dtype)
    frac[atoms] = torch.as_tensor(coordinates, dtype=frac.dtype)
    labels = {
        name: value if name in KEEP_LABELS else _blank(value, places) for name, value in data.labels.items()
    }
    sites = {name: _blank(value, atoms) for name, value in data.site_labels.items()}
    return replace(data, frac=frac, lattice=lattice, labels={**labels, "relaxed": flag}, site_labels=sites)


def _blank(value: Tensor, where: Tensor) -> Tensor:
    out = value.clone()
    out[where] = torch.nan
    return out
