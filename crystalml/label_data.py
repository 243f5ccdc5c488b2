"""Frames about known crystals, labelled by any ASE calculator: where slopes and curvatures are learned."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crystalml.convert import to_atoms
from crystalml.datasets.arrays import standard_orientation
from crystalml.datasets.packed import PackedDataset
from crystalml.errors import InputError
from crystalml.journal import Journal
from crystalml.progress import ProgressBar

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

Array = NDArray[Any]
Row = dict[str, Any]
Range = tuple[float, float]
DISPLACEMENT = (0.004, 0.1)
STRAIN = (0.001, 0.03)
MAX_CHANGE = 0.5  # eV/atom between a crystal and its frame, beyond which the calculator is not believed
ROWS = "frames.jsonl"
_KEPT = ("benchmark", "parent")  # labels that a frame shares with its crystal


@dataclass(frozen=True)
class LabelledData:
    """data: the frames with `energy`, `stress` and `forces`. rows: one for each asked for; `failed` says why
    a frame is missing, "" if it is there.
    """

    data: PackedDataset
    rows: list[Row]

    @property
    def failed(self) -> dict[str, int]:
        """Reason -> count."""
        return dict(Counter(row["failed"] for row in self.rows if row["failed"]).most_common())


def label_data(
    data: PackedDataset,
    calculator: Calculator,
    *,
    frames: int = 1,
    displacement: Range = DISPLACEMENT,
    strain: Range = STRAIN,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = True,
) -> LabelledData:
    """Move the crystals of a packed set a little, `frames` times each, and label what comes out.

    Either the atoms are moved by N(0, d) a coordinate, d drawn log-uniformly from `displacement` (Angstrom),
    or the cell is strained by symmetric N(0, s), s from `strain`, and the atoms by the least displacement.
    Forces (eV/A) and stress (eV/A^3) are the calculator's. The energy is the crystal's own label `energy`
    plus what the calculator says the move costs, so frames agree with the labels of the crystals whatever
    the calculator's zero. Crystals without that label are left out.

    Frames depend on the seed and the crystal's place alone. folder: where rows are kept as they come; the
    same call goes on where it was stopped. Raises InputError for data without energies, ranges that are
    none, a folder of other settings, or if no frame could be labelled.
    """
    _check(data, frames, displacement, strain)
    todo = np.flatnonzero(np.isfinite(data.labels["energy"].numpy())).tolist()
    settings = {
        "crystals": len(data), "calculator": type(calculator).__name__, "frames": frames,
        "displacement": list(displacement), "strain": list(strain), "seed": seed,
    }  # fmt: skip
    journal = Journal(Path(folder), ROWS) if folder is not None else None
    rows = {(row["crystal"], row["frame"]): row for row in journal.open(settings)} if journal else {}
    with ProgressBar(progress, "labelling") as bar:
        bar.add(len(todo) * frames)
        bar.advance(len(rows))
        for i in todo:
            if all((i, k) in rows for k in range(frames)):
                continue
            found = list(_label(data, i, calculator, frames, displacement, strain, seed))
            if journal:
                journal.append(found)
            rows |= {(i, row["frame"]): row for row in found}
            bar.advance(len(found))
    ordered = [rows[key] for key in sorted(rows)]
    good = [row for row in ordered if not row["failed"]]
    if not good:
        why = f", the first because of {ordered[0]['failed']}" if ordered else ": none has an energy"
        raise InputError(f"no frame of {len(data)} crystals could be labelled{why}")
    return LabelledData(_packed(data, good), ordered)


def _check(data: PackedDataset, frames: int, displacement: Range, strain: Range) -> None:
    if "energy" not in data.labels:
        raise InputError(
            f"the data have the labels {', '.join(data.labels) or 'none'}; frames take their energies from "
            "`energy` (eV/atom), which `crystalml pack` adds"
        )
    if frames < 1:
        raise InputError(f"frames must be 1 or more, not {frames}")
    for name, limits in (("displacement", displacement), ("strain", strain)):
        if not (0 < limits[0] <= limits[1] < math.inf):
            raise InputError(f"{name} must be 0 < low <= high, not {list(limits)}")


def _label(
    data: PackedDataset, i: int, calculator: Calculator, frames: int, displacement: Range, strain: Range,
    seed: int,
) -> Iterator[Row]:  # fmt: skip
    crystal = to_atoms(data[[i]])[0]
    rest = _ask(crystal, calculator)
    for k in range(frames):
        row: Row = {"crystal": i, "frame": k}
        moved = _move(crystal, np.random.default_rng([seed, i, k]), displacement, strain)
        found = rest if isinstance(rest, str) else _ask(moved, calculator)
        if isinstance(found, str) or isinstance(rest, str):
            yield {**row, "failed": found}
            continue
        change = (found[0] - rest[0]) / len(crystal)
        if abs(change) > MAX_CHANGE:
            yield {**row, "failed": f"energy changes by more than {MAX_CHANGE} eV/atom"}
            continue
        fields = (moved.get_scaled_positions(wrap=False), moved.cell.array, *found[1:])
        names = ("frac", "lattice", "forces", "stress")
        lists = {name: np.round(v, 7).tolist() for name, v in zip(names, fields, strict=True)}
        yield {**row, "failed": "", "energy": float(data.labels["energy"][i]) + change, **lists}


def _move(crystal: Atoms, rng: np.random.Generator, displacement: Range, strain: Range) -> Atoms:
    def draw(limits: Range) -> float:
        return float(np.exp(rng.uniform(*np.log(limits))))

    out = crystal.copy()
    size = draw(displacement)
    if rng.random() < 0.5 or len(crystal) == 1:  # a single atom has nowhere to go
        size = displacement[0]
        turn = rng.normal(size=(3, 3)) * draw(strain)
        out.set_cell(crystal.cell.array @ (np.eye(3) + (turn + turn.T) / 2), scale_atoms=True)
    out.positions += rng.normal(size=out.positions.shape) * size
    return out


def _ask(atoms: Atoms, calculator: Calculator) -> tuple[float, Array, Array] | str:
    """Energy, forces and stress, or why there are none."""
    atoms = atoms.copy()
    atoms.calc = calculator
    try:
        energy, forces = float(atoms.get_potential_energy()), atoms.get_forces()
        stress = atoms.get_stress(voigt=False)
    except Exception as error:  # somebody's calculator: whatever it says, the others go on
        return f"{type(error).__name__}: {error}"
    if not np.isfinite([energy, *forces.flat, *stress.flat]).all():
        return "energy, forces or stress not finite"
    return energy, forces, stress


def _packed(data: PackedDataset, rows: list[Row]) -> PackedDataset:
    """The frames as a packed set, upright, vectors and tensors turned with their cells."""
    parents = data.select(_tensor([row["crystal"] for row in rows]).long())
    counts = parents.num_atoms.numpy().astype(int)
    index = np.repeat(np.arange(len(rows)), counts)
    cells = np.array([row["lattice"] for row in rows])
    frac = np.concatenate([np.reshape(row["frac"], (-1, 3)) for row in rows])
    cells, frac, turn = standard_orientation(cells, frac, index)
    forces = np.concatenate([np.reshape(row["forces"], (-1, 3)) for row in rows])
    stress = turn.swapaxes(1, 2) @ np.array([row["stress"] for row in rows]) @ turn
    labels = {name: value for name, value in parents.labels.items() if name in _KEPT}
    labels |= {
        "energy": _tensor([row["energy"] for row in rows]),
        "off_equilibrium": _tensor(np.ones(len(rows))),
        "stress": _tensor(stress),
    }
    sites = {"forces": _tensor(np.einsum("ni,nij->nj", forces, turn[index]))}
    return replace(parents, frac=_tensor(frac), lattice=_tensor(cells), labels=labels, site_labels=sites)


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values, np.float32))
