"""Frames about known crystals, labelled by any calculator: where slopes and curvatures are learned."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crystalml.convert import to_atoms
from crystalml.crystal import EV_PER_A3
from crystalml.datasets.arrays import Arrays, fractions, reduced_formula, standard_orientation
from crystalml.datasets.crysdb import fit_references, reference_energy
from crystalml.datasets.packed import PackedDataset
from crystalml.elements import MAX_Z
from crystalml.errors import InputError
from crystalml.journal import Journal
from crystalml.progress import ProgressBar
from crystalml.prototypes import PrototypeAtlas

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

    Labeller = Calculator | Callable[[list[Atoms]], Sequence["Found"]]

Array = NDArray[Any]
Found = tuple[float, Array, Array]  # energy, forces, stress
Row = dict[str, Any]
Range = tuple[float, float]
DISPLACEMENT = (0.004, 0.1)
STRAIN = (0.001, 0.03)
MAX_CHANGE = 0.5  # eV/atom between a crystal and its frame, beyond which the calculator is not believed
MAX_FORCE = 50.0  # eV/A: the same of a crystal with new elements, which has no other to be compared with
DESCENT = 3  # frames of a crystal with new elements
ALIKE = 10  # how many elements may take another's sites
TOGETHER = 32  # crystals asked about in one call of a function
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
    calculator: Labeller,
    *,
    frames: int = 1,
    substituted: int = 0,
    exclude: Collection[str] = (),
    displacement: Range = DISPLACEMENT,
    strain: Range = STRAIN,
    max_change: float = MAX_CHANGE,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = True,
) -> LabelledData:
    """Move the crystals of a packed set a little, `frames` times each, and label what comes out.

    Atoms are moved by N(0, d) a coordinate, d drawn log-uniformly from `displacement` (Angstrom), or the
    cell is strained by symmetric N(0, s), s from `strain`, and the atoms by the least displacement, or both.
    Forces (eV/A) and stress (eV/A^3) are the calculator's. The energy is the crystal's own label `energy`
    plus what the calculator says the move costs, so frames agree with the labels of the crystals whatever
    the calculator's zero; beyond `max_change` (eV/atom) the calculator is not believed. Crystals without
    that label are left out.

    calculator: an ASE calculator, or, for models that are faster in batches, a function of a list of Atoms
    that returns of each the energy (eV), forces (n, 3) in eV/A and stress (3, 3) in eV/A^3.
    substituted: how many further crystals to make of each, with elements of the set on the sites of elements
    they are like, by the shipped atlas, and the volume it expects; each gives `DESCENT` frames on the way
    down the calculator's forces. Their energy is the calculator's less what it takes the elements for
    (`fit_references`, on the set's own crystals), and NaN if these are too few to tell.
    exclude: reduced formulas as of `datasets.arrays.formulas`, such as a test's, that none of them may have.

    Frames depend on the seed and the crystal's place alone. folder: where rows are kept as they come; the
    same call goes on where it was stopped. Raises InputError for data without energies, ranges that are
    none, a folder of other settings, or if no frame could be labelled.
    """
    plan = _Plan(frames, substituted, frozenset(exclude), displacement, strain, max_change, seed)
    _check(data, plan)
    todo = np.flatnonzero(np.isfinite(data.labels["energy"].numpy())).tolist()
    journal = Journal(Path(folder), ROWS) if folder is not None else None
    rows: dict[tuple[int, int], Row] = {}
    if journal:
        settings = {"crystals": len(data), "calculator": _name(calculator), **plan.settings()}
        rows = {(row["crystal"], row["frame"]): row for row in journal.open(settings)}
    left = [i for i in todo if any((i, k) not in rows for k in range(plan.count))]
    # one by one from an ASE calculator, which may be a slow one: little is lost if the run is stopped
    size = 1 if _is_ase(calculator) else TOGETHER
    elements = np.unique(data.numbers.numpy())
    with ProgressBar(progress, "labelling") as bar:
        bar.add(len(todo) * plan.count)
        bar.advance((len(todo) - len(left)) * plan.count)
        for start in range(0, len(left), size):
            found = list(_label(data, left[start : start + size], calculator, elements, plan))
            if journal:
                journal.append(found)
            rows |= {(row["crystal"], row["frame"]): row for row in found}
            bar.advance(len(found))
    ordered = [rows[key] for key in sorted(rows)]
    return LabelledData(_packed(data, _good(ordered, len(data))), ordered)


@dataclass(frozen=True)
class _Plan:
    frames: int
    substituted: int
    exclude: frozenset[str]
    displacement: Range
    strain: Range
    max_change: float
    seed: int

    @property
    def count(self) -> int:
        """Rows of one crystal."""
        return self.frames + self.substituted * DESCENT

    def settings(self) -> dict[str, Any]:
        digest = hashlib.sha256("\n".join(sorted(self.exclude)).encode()).hexdigest()[:8]
        return {
            "frames": self.frames, "substituted": self.substituted,
            "exclude": f"{len(self.exclude)} formulas ({digest})",
            "displacement": list(self.displacement), "strain": list(self.strain),
            "max_change": self.max_change, "seed": self.seed,
        }  # fmt: skip


def _is_ase(calculator: Labeller) -> bool:
    return hasattr(calculator, "get_potential_energy")


def _name(calculator: Labeller) -> str:
    return getattr(calculator, "__name__", type(calculator).__name__)


def _good(rows: list[Row], crystals: int) -> list[Row]:
    good = [row for row in rows if not row["failed"]]
    if not good:
        why = f", the first because of {rows[0]['failed']}" if rows else ": none has an energy"
        raise InputError(f"no frame of {crystals} crystals could be labelled{why}")
    return good


def _check(data: PackedDataset, plan: _Plan) -> None:
    if "energy" not in data.labels:
        raise InputError(
            f"the data have the labels {', '.join(data.labels) or 'none'}; frames take their energies from "
            "`energy` (eV/atom), which `crystalml pack` adds"
        )
    if plan.frames < 1:
        raise InputError(f"frames must be 1 or more, not {plan.frames}")
    if plan.substituted < 0:
        raise InputError(f"substituted must be 0 or more, not {plan.substituted}")
    if not plan.max_change > 0:
        raise InputError(f"max_change must be above 0 eV/atom, not {plan.max_change}")
    for name, limits in (("displacement", plan.displacement), ("strain", plan.strain)):
        if not (0 < limits[0] <= limits[1] < math.inf):
            raise InputError(f"{name} must be 0 < low <= high, not {list(limits)}")


def _label(
    data: PackedDataset, indices: list[int], calculator: Labeller, elements: Array, plan: _Plan
) -> Iterator[Row]:
    """All rows of some crystals, in as few questions to the calculator as there are steps downhill."""
    crystals = dict(zip(indices, to_atoms(data[indices]), strict=True))
    frames = [(i, k) for i in indices for k in range(plan.frames)]
    moved = [_move(crystals[i], np.random.default_rng([plan.seed, i, k]), plan) for i, k in frames]
    firsts = [(i, plan.frames + k * DESCENT) for i in indices for k in range(plan.substituted)]
    rngs = [np.random.default_rng([plan.seed, *place]) for place in firsts]
    new: list[Atoms | str] = [
        _with_like_elements(crystals[i], elements, plan.exclude, rng)
        for (i, _), rng in zip(firsts, rngs, strict=True)
    ]
    found = _ask([*crystals.values(), *moved, *new], calculator)
    rests = dict(zip(indices, found, strict=False))
    own = dict(zip(indices, data.labels["energy"][indices].tolist(), strict=True))
    at = len(indices)
    for (i, k), atoms, label in zip(frames, moved, found[at:], strict=False):
        yield {"crystal": i, "frame": k, **_moved(atoms, label, rests[i], own[i], plan.max_change)}
    found = found[at + len(moved) :]
    for step in range(DESCENT):
        for j, (i, first) in enumerate(firsts):
            row, new[j] = _substituted(new[j], found[j], rngs[j])
            yield {"crystal": i, "frame": first + step, **row}
        if step < DESCENT - 1:
            found = _ask(new, calculator)


def _moved(atoms: Atoms, found: Found | str, rest: Found | str, own: float, max_change: float) -> Row:
    """A row of a displaced or strained crystal. rest, own: the crystal's answer and label."""
    if isinstance(found, str) or isinstance(rest, str):
        return {"failed": rest if isinstance(rest, str) else found}
    change = (found[0] - rest[0]) / len(atoms)
    if abs(change) > max_change:
        return {"failed": f"energy changes by more than {max_change} eV/atom"}
    return {"failed": "", "energy": own + change, "rest": rest[0] / len(atoms), **_lists(atoms, found)}


def _substituted(atoms: Atoms | str, found: Found | str, rng: np.random.Generator) -> tuple[Row, Atoms | str]:
    """A row of a crystal with new elements, `energy` being the calculator's, and the next downhill."""
    if not isinstance(found, str) and np.abs(found[1]).max() > MAX_FORCE:
        found = f"forces on a crystal with new elements beyond {MAX_FORCE} eV/A"
    if isinstance(atoms, str) or isinstance(found, str):
        return {"failed": str(found)}, str(found)  # no way down from there
    own = {"numbers": atoms.numbers.tolist(), "energy": found[0] / len(atoms)}
    return {"failed": "", **own, **_lists(atoms, found)}, _descend(atoms, found, rng)


def _lists(atoms: Atoms, found: Found) -> Row:
    fields = (atoms.get_scaled_positions(wrap=False), atoms.cell.array, *found[1:])
    names = ("frac", "lattice", "forces", "stress")
    return {name: np.round(v, 7).tolist() for name, v in zip(names, fields, strict=True)}


def _with_like_elements(
    crystal: Atoms, elements: Array, exclude: Collection[str], rng: np.random.Generator
) -> Atoms | str:
    """Half of its elements or more for others of `elements`, and the volume of the new composition."""
    atlas = PrototypeAtlas.default()
    old, counts = np.unique(crystal.numbers, return_counts=True)
    leave = rng.random(len(old)) < 0.5
    leave[rng.integers(len(old))] = False
    table = np.arange(MAX_Z + 1)
    for z in old[~leave]:
        others = elements[elements != z]
        if len(others) == 0:
            return "no other element in the set"
        near = others[np.argsort(atlas.similarity.distances[z, others], kind="stable")[:ALIKE]]
        table[z] = rng.choice(near)
    out = crystal.copy()
    out.numbers = table[crystal.numbers]
    if (formula := reduced_formula(out.numbers)) in exclude:
        return f"{formula} is excluded"
    grown = atlas.volumes.log_volume(table[old], counts) - atlas.volumes.log_volume(old, counts)
    out.set_cell(crystal.cell.array * math.exp(grown / 3), scale_atoms=True)
    return out


def _descend(atoms: Atoms, found: Found, rng: np.random.Generator) -> Atoms:
    """A step down forces and stress, neither stalled nor beyond the minimum in most crystals, and a jolt."""
    out = atoms.copy()
    strain = -found[2] * EV_PER_A3 / 400  # GPa: three times a middling bulk modulus
    move = 0.06 * found[1]
    strain *= min(1.0, 0.05 / max(np.abs(strain).max(), 1e-9))
    move *= min(1.0, 0.12 / max(np.abs(move).max(), 1e-9))
    out.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    out.positions += move + rng.normal(size=move.shape) * 0.01
    return out


def _move(crystal: Atoms, rng: np.random.Generator, plan: _Plan) -> Atoms:
    def draw(limits: Range) -> float:
        return float(np.exp(rng.uniform(*np.log(limits))))

    out = crystal.copy()
    size = draw(plan.displacement)
    what = 0 if len(crystal) == 1 else rng.integers(3)  # cell, both, atoms; a single one has nowhere to go
    if what == 0:
        size = plan.displacement[0]
    if what < 2:
        turn = rng.normal(size=(3, 3)) * draw(plan.strain)
        out.set_cell(crystal.cell.array @ (np.eye(3) + (turn + turn.T) / 2), scale_atoms=True)
    out.positions += rng.normal(size=out.positions.shape) * size
    return out


def _ask(many: Sequence[Atoms | str], calculator: Any) -> list[Found | str]:
    """Energy, forces and stress, or why there are none; what is a reason already is handed on."""
    atoms = [x.copy() for x in many if not isinstance(x, str)]
    found = [_one(x, calculator) for x in atoms] if _is_ase(calculator) else _together(atoms, calculator)
    answers = iter(found)
    return [x if isinstance(x, str) else next(answers) for x in many]


def _one(atoms: Atoms, calculator: Calculator) -> Found | str:
    atoms.calc = calculator
    try:
        return _sound(atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False))
    except Exception as error:  # somebody's calculator: whatever it says, the others go on
        return f"{type(error).__name__}: {error}"


def _together(many: list[Atoms], label: Callable[[list[Atoms]], Sequence[Found]]) -> list[Found | str]:
    """By halves where it fails, until what it cannot do is alone."""
    if not many:
        return []
    try:
        found = list(label(many))
    except Exception as error:  # as above
        if len(many) == 1:
            return [f"{type(error).__name__}: {error}"]
        half = len(many) // 2
        return _together(many[:half], label) + _together(many[half:], label)
    if len(found) != len(many):
        raise InputError(f"the function that labels was given {len(many)} crystals and returned {len(found)}")
    return [_sound(*x) for x in found]


def _sound(energy: Any, forces: Any, stress: Any) -> Found | str:
    energy, forces, stress = float(energy), np.asarray(forces), np.asarray(stress)
    if not np.isfinite([energy, *forces.flat, *stress.flat]).all():
        return "energy, forces or stress not finite"
    return energy, forces, stress


def _packed(data: PackedDataset, rows: list[Row]) -> PackedDataset:
    """The frames as a packed set, upright, vectors and tensors turned with their cells."""
    parents = data.select(_tensor([row["crystal"] for row in rows]).long())
    counts = parents.num_atoms.numpy().astype(int)
    index = np.repeat(np.arange(len(rows)), counts)
    own = np.split(parents.numbers.numpy(), np.cumsum(counts)[:-1])
    numbers = np.concatenate([row.get("numbers", z) for row, z in zip(rows, own, strict=True)])
    cells = np.array([row["lattice"] for row in rows])
    frac = np.concatenate([np.reshape(row["frac"], (-1, 3)) for row in rows])
    cells, frac, turn = standard_orientation(cells, frac, index)
    forces = np.concatenate([np.reshape(row["forces"], (-1, 3)) for row in rows])
    stress = turn.swapaxes(1, 2) @ np.array([row["stress"] for row in rows]) @ turn
    labels = {name: value for name, value in parents.labels.items() if name in _KEPT}
    labels |= {
        "energy": _tensor(_energies(data, rows, Arrays(numbers, frac, cells, counts))),
        "off_equilibrium": _tensor(np.ones(len(rows))),
        "stress": _tensor(stress),
    }
    sites = {"forces": _tensor(np.einsum("ni,nij->nj", forces, turn[index]))}
    return replace(
        parents, numbers=torch.as_tensor(numbers).to(parents.numbers), frac=_tensor(frac),
        lattice=_tensor(cells), labels=labels, site_labels=sites,
    )  # fmt: skip


def _energies(data: PackedDataset, rows: list[Row], frames: Arrays) -> Array:
    """(b,) eV/atom on the scale of the crystals' labels."""
    energy = np.array([row["energy"] for row in rows])
    new = np.array(["numbers" in row for row in rows])
    rest = {row["crystal"]: (k, row["rest"]) for k, row in enumerate(rows) if "rest" in row}
    known = fractions(frames)[[k for k, _ in rest.values()]]
    if not new.any() or not rest or np.linalg.matrix_rank(known) < known.any(0).sum():
        return np.where(new, np.nan, energy)
    own = data.labels["energy"][list(rest)].double().numpy()
    references, _ = fit_references(known, np.array([total for _, total in rest.values()]) - own)
    # an element without a reference is one of crystals that all failed: NaN
    return np.where(new, energy - reference_energy(frames, references), energy)


def _tensor(values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values, np.float32))
