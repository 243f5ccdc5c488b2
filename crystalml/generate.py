"""StructureGenerator: from a composition to crystal structures."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from pymatgen.core import Composition, Structure

from crystalml import __version__, recipes
from crystalml.composition import parse_composition
from crystalml.convert import to_structures
from crystalml.crystal import CrystalBatch
from crystalml.elements import atomic_number
from crystalml.errors import InputError, TooManyAtomsError, UnsupportedError
from crystalml.guard import is_finite, standardise, to_valid_structure
from crystalml.guidance import EnergyGuidance, check_noise
from crystalml.metrics.validity import MIN_VOLUME
from crystalml.models.model import CrystalModel
from crystalml.predict import pack, pair_budget
from crystalml.progress import ProgressBar
from crystalml.prototypes.substitute import substitute
from crystalml.sample.base import Sampler
from crystalml.sample.template import FormulaUnits, template
from crystalml.weights import as_model

FRAMES = 50  # kept of a trajectory, evenly spaced over the steps, the sample itself last

CompositionLike = str | Composition | Mapping[Any, float]
FormulaUnitsLike = int | range | Literal["auto"]
Strategy = Literal["diffusion", "prototype", "auto"]


@dataclass(frozen=True)
class Cell:
    """One cell content to sample: `composition` of the whole cell, which holds z formula units."""

    composition: Composition
    z: int

    @property
    def numbers(self) -> list[int]:
        """Atomic numbers in the canonical order, so that "CsV3Sb5" and "Sb5V3Cs" draw the same crystals."""
        amounts = sorted(self.composition.items(), key=lambda item: item[0])  # electronegativity, then symbol
        return [element.Z for element, amount in amounts for _ in range(round(amount))]

    @property
    def formula(self) -> str:
        return self.composition.formula.replace(" ", "")


@dataclass(frozen=True)
class Draw:
    """One sample: number `index` of a cell, at its `attempt`-th try. position: place in the answer."""

    cell: Cell
    position: int
    index: int
    attempt: int = 0

    def seed(self, seed: int) -> int:
        """A 63-bit seed from (seed, cell, index, attempt): the same on every machine, in every batch."""
        key = f"{seed}/{self.cell.formula}/{self.index}/{self.attempt}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


@dataclass
class SampleReport:
    """What became of a request: rejected counts draws by reason, missing counts samples given up on."""

    requested: int = 0
    returned: int = 0
    missing: int = 0
    rejected: Counter[str] = field(default_factory=Counter)


def check_request(n: int, strategy: str, guidance: float, steps: int | None) -> None:
    """Refuse what no sampler can do. Raises InputError."""
    if n < 0 or int(n) != n:
        raise InputError(f"n must be a whole number of samples, 0 or more, not {n!r}.")
    if guidance < 0:
        raise InputError(f"guidance must be 0 (off) or positive, not {guidance!r}.")
    if strategy not in get_args(Strategy):
        raise InputError(f"strategy must be one of {', '.join(get_args(Strategy))}, not {strategy!r}.")
    if steps is not None and steps < 1:
        raise InputError(f"steps must be at least 1, not {steps!r}.")


def substituted(draws: list[Draw]) -> dict[int, tuple[Structure, list[Structure]]]:
    """By position of the draw, the prototypes' answers: the i-th draw of a cell gets the i-th likeliest."""
    wanted: dict[str, list[Draw]] = {}
    for draw in draws:
        wanted.setdefault(draw.cell.formula, []).append(draw)
    found: dict[int, tuple[Structure, list[Structure]]] = {}
    for group in wanted.values():
        most = max(draw.index for draw in group) + 1
        answers = substitute(group[0].cell.composition, most, warn=False)
        for draw in group:
            if draw.index < len(answers):
                structure = answers[draw.index].copy()
                structure.properties.update(formula_units=draw.cell.z, crystalml_version=__version__)
                found[draw.position] = (structure, [structure])
    return found


class StructureGenerator:
    """Crystal structure prediction by a diffusion model: Structures for a given composition.

    model: a model with noise heads; energy_model: one with an energy head, loaded only when guidance is used.
    Both take a shipped name, a path, a "hf://" address or a CrystalModel. device None picks CUDA if present.
    `report` holds the counts of the latest call.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | CrystalModel = "dao-g",
        energy_model: str | os.PathLike[str] | CrystalModel | None = "dao-p-diffusion",
        device: str | None = None,
        dtype: torch.dtype | str = torch.float32,
        *,
        max_pairs: int | None = None,
        max_redraws: int = 3,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.model = self._load(model)
        if not self.model.has_noise:
            name = self.model.card.get("name", "this model")
            raise UnsupportedError(f"{name} cannot generate: it has no noise heads. Use 'dao-g'.")
        self.noise = recipes.noise_for(self.model)
        self.energy_model = energy_model
        self.max_pairs = max_pairs
        self.max_redraws = max_redraws
        self.report = SampleReport()

    def sample(
        self,
        composition: CompositionLike | Sequence[CompositionLike],
        n: int = 1,
        *,
        formula_units: FormulaUnitsLike = "auto",
        strategy: Strategy = "diffusion",
        seed: int = 0,
        guidance: float = 0.0,
        steps: int | None = None,
        max_atoms: int | None = None,
        return_trajectory: bool = False,
        progress: bool = True,
    ) -> Any:
        """Draw n structures of a composition (of each Z, if formula_units is a range).

        A composition counts as one formula unit, exactly as written: "Cs2V6Sb10" with formula_units=1 has 18
        atoms. formula_units="auto" takes a formula that can be reduced as the cell content, and for a reduced
        one the most common Z of training crystals like it (same anonymous formula, else same number of atoms
        a formula unit, else 1). max_atoms None stands for the largest cell in training. guidance > 0 steers
        towards low energy (DAO, Algorithm 1). steps None is the recipe's number.

        strategy "diffusion" draws every structure from noise. "prototype" puts the elements on the sites of
        known structure types instead (`crystalml.prototypes`), likeliest first: oftener right, never of a new
        type, and there may be fewer than n. "auto" takes those first and draws the rest.

        Each draw depends on (seed, composition, index) only, up to rounding, whatever the batch. Those
        with atoms closer than 0.5 A, no volume or NaN are redrawn up to max_redraws times; what fails is
        left out with a warning (see `report`).

        Returns a list of Structures for one composition, a list of such lists for a sequence of them; with
        return_trajectory, a pair (structures, trajectories), the latter having in place of each structure a
        list of about 50 from noise to it (frames without volume are skipped). See also `.properties`.
        """
        check_request(n, strategy, guidance, steps)
        wanted: list[CompositionLike]
        if single := isinstance(composition, str | Composition | Mapping):
            wanted = [composition]
        else:
            wanted = list(composition)
        cells = [self.cells(item, formula_units, max_atoms) for item in wanted]
        draws: list[Draw] = []
        owners: list[int] = []
        for owner, choices in enumerate(cells):
            for cell in choices:
                draws += [Draw(cell, len(draws) + i, i) for i in range(n)]
                owners += [owner] * n
        settings = {"seed": seed, "guidance": guidance, "steps": steps}
        found = {} if strategy == "diffusion" else substituted(draws)
        rest = [] if strategy == "prototype" else [draw for draw in draws if draw.position not in found]
        found |= self._run(rest, settings, return_trajectory, progress)
        self.report.requested, self.report.returned = len(draws), len(found)
        self.report.missing = len(draws) - len(found)
        structures: list[list[Structure]] = [[] for _ in wanted]
        trajectories: list[list[list[Structure]]] = [[] for _ in wanted]
        for position, (structure, frames) in sorted(found.items()):
            structures[owners[position]].append(structure)
            trajectories[owners[position]].append(frames)
        answer = (structures[0], trajectories[0]) if single else (structures, trajectories)
        return answer if return_trajectory else answer[0]

    def cells(
        self, composition: CompositionLike, formula_units: FormulaUnitsLike, max_atoms: int | None
    ) -> list[Cell]:
        """The cell contents that a request stands for.

        Raises CompositionError, UnknownElementError or TooManyAtomsError.
        """
        symbols = self.model.card.get("elements")
        unit = parse_composition(composition, known={atomic_number(s) for s in symbols} if symbols else None)
        choices = [Cell(unit * z, z) for z in self._formula_units(unit, formula_units)]
        limit = max_atoms if max_atoms is not None else self.model.card.get("max_atoms")
        for cell in choices:
            count = round(cell.composition.num_atoms)
            if limit is not None and count > limit:
                raise TooManyAtomsError(
                    f"{cell.formula} has {count} atoms a cell, more than {limit}"
                    + (" (the largest in training)" if max_atoms is None else "")
                    + f". Ask for fewer formula units, or pass max_atoms={count}."
                )
        return choices

    def _formula_units(self, unit: Composition, formula_units: FormulaUnitsLike) -> list[int]:
        if formula_units == "auto":
            reduced, factor = unit.get_reduced_composition_and_factor()
            if factor > 1:
                return [1]
            statistics = FormulaUnits.from_dict(self.model.card.get("formula_units") or {})
            return [statistics.guess(Cell(reduced, 1).numbers)]
        values = list(formula_units) if isinstance(formula_units, range) else [formula_units]
        if not values or any(type(z) is not int or z < 1 for z in values):  # True is no number of units
            raise InputError(
                f"formula_units must be a positive whole number, a range of them or 'auto', "
                f"not {formula_units!r}."
            )
        return values

    def _run(
        self, draws: list[Draw], settings: dict[str, Any], keep_frames: bool, progress: bool
    ) -> dict[int, tuple[Structure, list[Structure]]]:
        self.report = SampleReport(requested=len(draws))
        sampler = recipes.sampler(self.noise, steps=settings["steps"])
        settings = {**settings, "steps": len(sampler.levels()) - 1}
        guide = self._guide(settings["guidance"])
        found: dict[int, tuple[Structure, list[Structure]]] = {}
        budget = self.max_pairs or pair_budget(self.device, gradient=guide is not None)
        with ProgressBar(progress and bool(draws), "sampling") as bar:
            pending = draws
            while pending:
                counts = torch.tensor([len(draw.cell.numbers) for draw in pending])
                batches = [[pending[i] for i in group.tolist()] for group in pack(counts, budget)]
                bar.add(len(pending) * settings["steps"])
                pending = []
                for batch in batches:
                    frames = self._draw(batch, sampler, guide, settings, keep_frames, bar)
                    pending += self._sort_out(batch, frames, settings, found)
        self.report.returned = len(found)
        self.report.missing = len(draws) - len(found)
        if self.report.missing:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in self.report.rejected.items())
            warnings.warn(
                f"{self.report.missing} of {len(draws)} samples were still invalid after {self.max_redraws} "
                f"redraws and are left out ({reasons}). Try more steps or another seed.",
                stacklevel=3,
            )
        return found

    def _draw(
        self,
        batch: list[Draw],
        sampler: Sampler,
        guide: EnergyGuidance | None,
        settings: dict[str, Any],
        keep_frames: bool,
        bar: ProgressBar,
    ) -> list[CrystalBatch]:
        seeds = torch.tensor([draw.seed(settings["seed"]) for draw in batch], device=self.device)
        blank = template([draw.cell.numbers for draw in batch], self.device, self.dtype)
        steps = settings["steps"]
        kept = {round(i * steps / FRAMES) for i in range(FRAMES)} if keep_frames else set()
        frames: list[CrystalBatch] = []
        for step, x in enumerate(sampler.trajectory(self.model.denoise, blank, seeds, guide)):
            if step in kept or step == steps:  # step 0 is the prior, the last one the sample
                frames.append(x.to("cpu"))
            bar.advance(len(batch) if step else 0)
        return frames

    def _sort_out(
        self,
        batch: list[Draw],
        frames: list[CrystalBatch],
        settings: dict[str, Any],
        found: dict[int, tuple[Structure, list[Structure]]],
    ) -> list[Draw]:
        """Convert and keep the valid samples; return the draws to repeat."""
        again: list[Draw] = []
        parts = [frame.split() for frame in frames]
        for i, draw in enumerate(batch):
            structure, reason = to_valid_structure(parts[-1][i])
            if structure is None:
                self.report.rejected[reason] += 1
                if draw.attempt < self.max_redraws:
                    again.append(Draw(draw.cell, draw.position, draw.index, draw.attempt + 1))
                continue
            structure.properties.update(self._provenance(draw, settings))
            usable = (standardise(part[i]) for part in parts[:-1] if is_finite(part[i]))
            earlier = [to_structures(part)[0] for part in usable if float(part.volume[0]) > MIN_VOLUME]
            found[draw.position] = (structure, [*earlier, structure])
        return again

    def _provenance(self, draw: Draw, settings: dict[str, Any]) -> dict[str, Any]:
        card = self.model.card
        return {
            "strategy": "diffusion",
            "model": card.get("name") or card.get("source") or "custom",
            "sha256": card.get("sha256"),
            "crystalml_version": __version__,
            "formula_units": draw.cell.z,
            "index": draw.index,
            "attempts": draw.attempt + 1,
            **settings,
        }

    def _guide(self, scale: float) -> EnergyGuidance | None:
        if scale == 0:
            return None
        if self.energy_model is None:
            raise InputError(
                "guidance needs an energy model: StructureGenerator(energy_model='dao-p-diffusion')."
            )
        model = self.energy_model = self._load(self.energy_model)  # kept for the next call
        if not model.has_energy:
            raise UnsupportedError("the energy_model has no energy head: use 'dao-p-diffusion'.")
        check_noise(model, self.model)
        return EnergyGuidance(model, scale)

    def _load(self, model: str | os.PathLike[str] | CrystalModel) -> CrystalModel:
        return as_model(model, self.device, self.dtype)
