"""Relaxation of crystals: all in one batch with a crystalml potential, one by one with any ASE calculator."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any, Generic, NotRequired, TypedDict, TypeVar

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms, FixCartesian, FixSymmetry
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE, LBFGS
from numpy.typing import NDArray
from pymatgen.core import IStructure, Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor
from torch import Tensor

from crystalml.calculators.ase import DaoCalculator
from crystalml.convert import COINCIDING, check_whole, is_one, listed, space_group_of, to_batch, told_alone
from crystalml.crystal import CrystalBatch
from crystalml.elements import numbers_of
from crystalml.errors import CrystalMLError, InputError, NonFiniteError, UnsupportedError
from crystalml.models.model import CrystalModel
from crystalml.predict import Predictor, pair_budget
from crystalml.progress import ProgressBar
from crystalml.relaxation.batch import BatchRelaxer, Relaxed
from crystalml.relaxation.settings import RelaxSettings

Array = NDArray[np.float64]
Kind = TypeVar("Kind", bound=IStructure | Atoms)
Model = str | os.PathLike[str] | CrystalModel | Predictor | Calculator | None
"""What gives the forces: the default potential (None), a shipped name, path or "hf://" address, a model, or
any ASE calculator."""

_POOL = 8  # how many groups of the predictor's are live on a CPU, so that alike crystals find each other
_ASE_OPTIMIZERS = {"lbfgs": LBFGS, "fire": FIRE}


class Trajectory(TypedDict):
    """One entry a step, the start first: eV a cell, eV/A, (n, 3) positions and (3, 3) cells in Angstrom."""

    energies: list[float]
    fmax: list[float]
    positions: list[Array]
    cells: list[Array]


class Relaxation(TypedDict, Generic[Kind]):
    """Outcome of one relaxation; `final_structure` and `trajectory` are called as in matgl and CHGNet.

    The final structure is of the kind that was given, with all that it carried. Space groups are such as
    "P6/mmm (191)", by spglib, and "" for what is not periodic in three directions.
    """

    final_structure: Kind
    energy: float  # eV a cell
    converged: bool
    n_steps: int
    fmax: float  # eV/A, cell included
    spacegroup_before: str
    spacegroup_after: str
    error: str  # why it failed; "" if it did not
    energy_uncertainty: NotRequired[float]  # eV a cell, from calibrated potentials
    trajectory: NotRequired[Trajectory]  # if asked for


Outcome = Relaxation[Kind] | Exception


def relax(
    structures: Kind | Iterable[Kind],
    model: Model = None,
    *,
    fmax: float = 0.05,
    cell: bool = True,
    fix_symmetry: bool = False,
    max_steps: int = 500,
    optimizer: str = "lbfgs",
    symprec: float | None = None,
    trajectory: bool = False,
    progress: bool = True,
) -> list[Relaxation[Kind]]:
    """Relax one structure or many until no force exceeds fmax (eV/A); results in the order of the input.

    With a potential of crystalml (None: the default one; a name, path, model, Predictor or DaoCalculator) all
    run in one batch as large as memory allows, and a crystal that is done makes room for the next. With any
    other calculator they run one by one through ASE (FrechetCellFilter, FixSymmetry).

    cell=True relaxes the cell, too, where it is periodic in three directions; slabs, wires and molecules
    keep theirs. fix_symmetry moves the start onto its space group and keeps it. optimizer: "lbfgs" or "fire".
    A run that stops at max_steps has converged=False. See RelaxSettings for all of these. FixAtoms and
    FixCartesian of Atoms, and selective dynamics of a Structure, are kept.

    A structure that fails does not stop the others: its result has the reason as `error`, energy NaN and the
    start as `final_structure`, and a warning counts such. A single one raises instead: InputError,
    UnsupportedError, or what the calculator raises. Bad settings raise InputError, and so does, before the
    work begins, what is neither a Structure nor Atoms.
    """
    settings = RelaxSettings(fmax, max_steps, cell, fix_symmetry, optimizer, symprec, trajectory)
    single = is_one(structures)
    items: list[Kind] = listed(structures)  # type: ignore[assignment]
    for place, item in enumerate(items):
        _check_kind(item, place)
    results: dict[int, Relaxation[Kind]] = {}
    with ProgressBar(progress and not single, "relaxing") as bar:
        bar.add(len(items))
        for place, outcome in relax_each(items, model, settings):
            if isinstance(outcome, Exception):
                if single:
                    raise outcome
                outcome = failed(items[place], outcome)
            results[place] = outcome
            bar.advance(1)
    wrong = [(place, results[place]["error"]) for place in range(len(items)) if results[place]["error"]]
    if wrong:
        place, why = wrong[0]
        warnings.warn(
            f"{len(wrong)} of {len(items)} structures could not be relaxed; number {place}: {why}",
            RuntimeWarning,
            stacklevel=2,
        )
    return [results[place] for place in range(len(items))]


def relax_each(
    structures: Iterable[Kind], model: Model, settings: RelaxSettings
) -> Iterator[tuple[int, Outcome[Kind]]]:
    """Yield (place in the input, outcome) of each structure as soon as it is done; see `relax`.

    Structures are taken from the iterable when there is room for them.
    """
    engine = as_engine(model)
    if isinstance(engine, Predictor):
        yield from _in_batch(structures, engine, settings)
    else:
        yield from one_by_one(structures, engine, settings)


def as_engine(model: Model) -> Predictor | Calculator:
    """A Predictor for what can run in a batch, a potential; else a calculator for ASE."""
    if model is None or isinstance(model, str | os.PathLike):
        model = DaoCalculator() if model is None else DaoCalculator(model)
    if isinstance(model, CrystalModel):
        model = Predictor(model)
    if isinstance(model, DaoCalculator):
        unchanged = type(model).calculate is DaoCalculator.calculate  # a subclass may add what a batch lacks
        return Predictor(model.model) if unchanged and model.model.is_potential else model
    if isinstance(model, Predictor) and not model.model.is_potential:
        weight = next(model.model.parameters())
        return DaoCalculator(model.model, device=str(weight.device), dtype=weight.dtype)
    able = isinstance(model, Predictor) or hasattr(model, "get_potential_energy")
    if not able or isinstance(model, type):
        raise InputError(
            f"cannot relax with {model!r:.80}: hand over a model's name, a CrystalModel, a Predictor or an "
            "ASE calculator" + ", made by calling its class" * isinstance(model, type)
        )
    return model


def failed(item: Kind, error: Exception) -> Relaxation[Kind]:
    """The result of a structure that could not be relaxed: itself, and why."""
    nan = float("nan")
    return Relaxation(
        final_structure=item,
        energy=nan,
        converged=False,
        n_steps=0,
        fmax=nan,
        spacegroup_before="",
        spacegroup_after="",
        error=reason(error),
    )


def reason(error: Exception) -> str:
    """An error in one line; of errors that are not ours with their kind."""
    text = " ".join(str(error).split())
    return text if isinstance(error, CrystalMLError) else f"{type(error).__name__}: {text}".rstrip(": ")


def spacegroup(structure: IStructure | Atoms, symprec: float = 0.1) -> str:
    """Hermann-Mauguin symbol and number by spglib, such as "P6/mmm (191)"; "P1 (1)" if none is found.

    "" for what is not periodic in three directions, which has no space group.
    """
    if isinstance(structure, Atoms):
        if not (structure.pbc.all() and structure.cell.rank == 3):
            return ""
        numbers, frac = structure.numbers, structure.get_scaled_positions(wrap=False)
        structure = Structure(structure.cell[:], numbers.tolist(), frac)
    elif not all(structure.lattice.pbc):
        return ""
    symbol, number = space_group_of(structure, symprec) or ("P1", 1)
    return f"{symbol} ({number})"


def _check_kind(item: object, place: int) -> None:
    if not isinstance(item, IStructure | Atoms):
        value = " ".join(repr(item).split())
        raise InputError(
            f"structure {place} is a {type(item).__name__}, {value:.60}: only Structures of pymatgen and "
            "Atoms of ASE are relaxed; molecules go as Atoms, a CrystalBatch by to_structures(batch)"
        )


# --- in a batch -------------------------------------------------------------------------------------------
def _in_batch(
    structures: Iterable[Kind], predictor: Predictor, settings: RelaxSettings
) -> Iterator[tuple[int, Outcome[Kind]]]:
    device = next(predictor.model.parameters()).device
    known = numbers_of(predictor.model.card.get("elements")) or None
    bad: deque[tuple[int, Exception]] = deque()
    given: dict[int, tuple[int, Kind, CrystalBatch]] = {}
    numbers = count()

    def stream() -> Iterator[CrystalBatch]:
        for place, item in enumerate(structures):
            try:
                crystal = to_batch(
                    _slab_as_atoms(item),
                    dtype=torch.float64,
                    device=device,
                    known=known,
                    min_distance=COINCIDING,
                    bulk=False,
                )
                free = _free(item)
            except (InputError, UnsupportedError) as error:
                bad.append((place, type(error)(told_alone(error))))
                continue
            if free is not None:
                crystal = crystal.replace(site_labels={"free": torch.as_tensor(free, device=device)})
            given[next(numbers)] = (place, item, crystal)
            yield crystal

    for k, result in batch_relaxer(predictor, settings).run(stream()):
        while bad:
            yield bad.popleft()
        place, item, start = given.pop(k)
        yield place, result.error or _from_batch(item, start, result, settings)
    yield from bad


def _slab_as_atoms(item: Any) -> Any:
    """A Structure whose lattice is not periodic in all directions as Atoms, which converters take."""
    return _as_atoms(item) if isinstance(item, IStructure) and not all(item.lattice.pbc) else item


def _as_atoms(item: IStructure) -> Atoms:
    """With the constraints that selective dynamics stand for, which pymatgen's adaptor wants as bool."""
    flags = _free(item)
    if flags is not None:
        item = item.copy(site_properties={"selective_dynamics": flags.tolist()})
    return AseAtomsAdaptor.get_atoms(item, msonable=False)


def batch_relaxer(predictor: Predictor, settings: RelaxSettings) -> BatchRelaxer:
    """As many crystals live as the predictor evaluates at once, by its own count of pairs of atoms.

    On a GPU the free memory decides; there the predictor is asked for all of them in one go, and halves what
    does not fit after all. On a CPU its groups are small, and several are live.
    """
    device = next(predictor.model.parameters()).device
    pairs = predictor.max_pairs or pair_budget(device, True)
    cutoff = getattr(predictor.model.config.encoder, "cutoff", None)

    def cost(x: CrystalBatch) -> Tensor:
        within = x.num_atoms if cutoff is None else 4.19 * cutoff**3 * x.num_atoms / x.volume
        return x.num_atoms * within

    room = pairs if device.type == "cuda" else _POOL * pairs
    return BatchRelaxer(dataclasses.replace(predictor, max_pairs=pairs), settings, cost, room)


def _free(item: IStructure | Atoms) -> NDArray[np.bool_] | None:
    """(n, 3) which Cartesian directions are free; None where all are."""
    if isinstance(item, IStructure):
        flags = item.site_properties.get("selective_dynamics")
        if flags is None:
            return None
        given = [[True] * 3 if flag is None else list(flag) for flag in flags]  # None: a site added later
        if any(len(flag) != 3 for flag in given):
            raise InputError("selective_dynamics must have three flags for every site")
        return np.array(given, bool)
    if not item.constraints:
        return None
    free = np.ones((len(item), 3), bool)
    for constraint in item.constraints:
        if type(constraint) not in (FixAtoms, FixCartesian):
            raise UnsupportedError(
                f"the constraint {type(constraint).__name__} is not known in a batch or a reduced cell, only "
                "FixAtoms and FixCartesian are (and fix_symmetry=True instead of FixSymmetry): remove it, or "
                "relax these atoms with an optimizer of ASE"
            )
        free[constraint.index] &= ~np.array(getattr(constraint, "mask", [True] * 3))
    return free


def _from_batch(
    item: Kind, start: CrystalBatch, result: Relaxed, settings: RelaxSettings
) -> Relaxation[Kind]:
    final = _put(item, *_geometry(item, start, result.crystal))
    found = Relaxation(
        final_structure=final,
        energy=result.energy,
        converged=result.converged,
        n_steps=result.steps,
        fmax=result.fmax,
        spacegroup_before=spacegroup(item, settings.tolerance),
        spacegroup_after=spacegroup(final, settings.tolerance),
        error="",
    )
    if "energy_uncertainty" in result.extra:
        found["energy_uncertainty"] = result.extra["energy_uncertainty"]
    if settings.trajectory:
        places, cells = zip(*(_geometry(item, start, frame.crystal) for frame in result.frames), strict=True)
        found["trajectory"] = Trajectory(
            energies=[frame.energy for frame in result.frames],
            fmax=[frame.fmax for frame in result.frames],
            positions=list(places),
            cells=list(cells),
        )
    return found


def _geometry(item: IStructure | Atoms, start: CrystalBatch, end: CrystalBatch) -> tuple[Array, Array]:
    """Positions and cell of `item` after going from start to end: in its own handedness, not wrapped."""
    pbc = start.pbc[0].cpu().numpy()
    shift = (end.frac - start.frac).cpu().numpy()
    shift -= np.rint(shift) * pbc
    if isinstance(item, IStructure):
        frac, cell, positions = item.frac_coords, item.lattice.matrix, item.cart_coords
    else:
        cell, positions = item.cell.array, item.positions
        frac = item.get_scaled_positions(wrap=False) if pbc.all() else positions
    if not pbc.all():
        return positions + shift @ start.lattice[0].cpu().numpy(), cell
    sign = np.sign(np.linalg.det(cell))  # left-handed cells were turned inside out: L -> -L, F -> -F
    cell = sign * end.lattice[0].cpu().numpy()
    return (frac + sign * shift) @ cell, cell


def _put(item: Kind, positions: Array, cell: Array) -> Kind:
    """A copy of `item` in another geometry."""
    if isinstance(item, Atoms):
        atoms = item.copy()
        atoms.set_cell(cell, apply_constraint=False)
        atoms.set_positions(positions, apply_constraint=False)
        return atoms
    moved: Any = item.copy() if isinstance(item, Structure) else Structure.from_sites(list(item))
    moved.lattice = Lattice(cell, pbc=item.lattice.pbc)
    for site, place, label in zip(moved, positions, item.labels, strict=True):
        site.coords, site.label = place, label
    moved.properties = dict(item.properties)  # these two and the labels a Slab's copy leaves behind
    moved._charge = item._charge
    if not isinstance(item, Structure):
        moved = IStructure.from_sites(list(moved), charge=item._charge, properties=moved.properties)
    return moved  # type: ignore[no-any-return]


# --- one by one -------------------------------------------------------------------------------------------
def one_by_one(
    structures: Iterable[Kind], calculator: Calculator, settings: RelaxSettings
) -> Iterator[tuple[int, Outcome[Kind]]]:
    """As `relax_each`, through ASE, whatever the calculator."""
    for place, item in enumerate(structures):
        try:
            if isinstance(item, Atoms):
                check_whole(item, place)
            yield place, _by_ase(item, calculator, settings)
        except Exception as error:  # other people's calculators raise anything
            yield place, error


def _by_ase(item: Kind, calculator: Calculator, settings: RelaxSettings) -> Relaxation[Kind]:
    if isinstance(calculator, DaoCalculator) and not calculator.model.is_potential:
        item = reduced(item)  # where such models are at home
    atoms = item.copy() if isinstance(item, Atoms) else _as_atoms(item)
    bulk = atoms.pbc.all() and atoms.cell.rank == 3
    if settings.fix_symmetry:
        if not bulk or atoms.constraints:
            raise UnsupportedError(
                "fix_symmetry needs a crystal periodic in three directions without fixed atoms; relax this "
                "one with fix_symmetry=False"
            )
        atoms.set_constraint(FixSymmetry(atoms, symprec=settings.tolerance))
    atoms.calc = calculator
    target: Any = FrechetCellFilter(atoms) if settings.cell and bulk else atoms
    steps = Trajectory(energies=[], fmax=[], positions=[], cells=[])

    def note() -> None:
        steps["energies"].append(float(atoms.get_potential_energy()))
        steps["fmax"].append(float(np.linalg.norm(target.get_forces(), axis=1).max()))
        steps["positions"].append(atoms.positions.copy())
        steps["cells"].append(atoms.cell.array.copy())

    run: Any = _ASE_OPTIMIZERS[settings.optimizer](target, logfile=None)
    if settings.trajectory:  # asked at every step, the filter's forces would take as long as a small model's
        run.attach(note)
    converged = bool(run.run(fmax=settings.fmax, steps=settings.max_steps))
    energy = float(atoms.get_potential_energy())
    largest = float(np.linalg.norm(target.get_forces(), axis=1).max())
    if not np.isfinite([energy, largest]).all():
        raise NonFiniteError(f"energy or forces are not finite after {run.get_number_of_steps()} steps")
    final = _put(item, atoms.positions, atoms.cell.array)
    found = Relaxation(
        final_structure=final,
        energy=energy,
        converged=converged,
        n_steps=int(run.get_number_of_steps()),
        fmax=largest,
        spacegroup_before=spacegroup(item, settings.tolerance),
        spacegroup_after=spacegroup(final, settings.tolerance),
        error="",
    )
    if settings.trajectory:
        found["trajectory"] = steps
    return found


def reduced(item: Kind, tolerance: float = 0.02) -> Kind:
    """The same atoms in a Niggli-reduced cell, unless its vectors are as short already, within `tolerance`.

    Reduction is discontinuous: of a rattled hexagonal cell it may return gamma near 60 instead of 120
    degrees, and an energy that depends on the choice of axes would jump. What is not a bulk crystal stays as
    it is. Raises UnsupportedError for constraints that may depend on the axes.
    """
    if isinstance(item, Atoms):
        cell, pbc, positions = item.cell.array, item.pbc, item.positions
    else:
        cell, pbc, positions = item.lattice.matrix, item.lattice.pbc, item.cart_coords
    if not all(pbc) or np.linalg.matrix_rank(cell) < 3:
        return item
    short = Lattice(cell).get_niggli_reduced_lattice()
    if sum(short.abc) >= (1 - tolerance) * np.linalg.norm(cell, axis=1).sum():
        return item
    _free(item)
    return _put(item, positions, short.matrix)
