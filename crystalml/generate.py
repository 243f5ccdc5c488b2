"""StructureGenerator: from a composition to crystal structures."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any, Literal, get_args

import torch
from numpy.typing import ArrayLike
from pymatgen.core import Composition, Lattice, Structure

from crystalml import __version__, recipes
from crystalml.composition import whole_number
from crystalml.convert import to_batch
from crystalml.device import pick_device
from crystalml.diffuse import Diffusion, Found, SampleReport
from crystalml.errors import InputError, UnsupportedError
from crystalml.guidance import EnergyGuidance, check_noise
from crystalml.hybrid.predict import Denoising, Hybrid, Request
from crystalml.hybrid.rank import Ranker
from crystalml.models.model import CrystalModel
from crystalml.noise.torus import TorusDDPM
from crystalml.noise.wrapped import WrappedNormal
from crystalml.predict import Predictor
from crystalml.progress import ProgressBar
from crystalml.prototypes import PrototypeAtlas
from crystalml.prototypes.fingerprint import Distinct
from crystalml.prototypes.wyckoff import can_place, group_of
from crystalml.request import CompositionLike, Draw, Fixed, FormulaUnitsLike, Group, Reader
from crystalml.sample.base import Sampler
from crystalml.sample.probability_flow import Method
from crystalml.sample.solvers import Solver
from crystalml.sample.solvers import solver as make_sampler
from crystalml.samples import Samples
from crystalml.weights import as_model

ModelLike = str | os.PathLike[str] | CrystalModel
Strategy = Literal["auto", "hybrid", "prototype", "diffusion"]
Answer = tuple[Structure, list[Structure]]
RankBy = Literal["probability", "energy"]

PART = 24  # requests refined together
DRAWS, SCORES = "gemsdiff", "dao-g"  # which draws better, and which knows the scores that guiding needs
QUICK = 25  # of GemsDiff's 100 steps: they match more validation crystals, docs/gemsdiff.md
REFINING = 5  # steps from noise_level to the crystal, unless told otherwise


@dataclass(frozen=True)
class Wish:
    """What all structures of a call share; see `StructureGenerator.sample`."""

    n: int
    strategy: Strategy
    seed: int
    guidance: float
    steps: int | None
    noise_level: float
    rank_by: RankBy | None
    distinct: bool
    same_formula: bool
    keep_frames: bool
    progress: bool
    fixed: Fixed

    def __post_init__(self) -> None:
        whole_number(self.n, 0, "n, the structures wanted,")
        if self.steps is not None:
            whole_number(self.steps, 1, "steps")
        if not self.guidance >= 0:
            raise InputError(f"guidance must be 0 (off) or positive, not {self.guidance!r}.")
        if self.strategy not in get_args(Strategy):
            names = ", ".join(get_args(Strategy))
            raise InputError(f"strategy must be one of {names}, not {self.strategy!r}.")
        if self.rank_by is not None and self.rank_by not in get_args(RankBy):
            names = ", ".join(get_args(RankBy))
            raise InputError(f"rank_by must be one of {names} or None, not {self.rank_by!r}.")
        if not 0 <= self.noise_level <= 1:
            raise InputError(f"noise_level is a share of the noise levels, 0 to 1, not {self.noise_level!r}.")
        if self.noise_level and self.fixed.space_group is not None:
            raise UnsupportedError("noise does not keep a space group: leave out noise_level or space_group")
        if self.fixed.geometry and self.strategy in ("hybrid", "prototype"):
            raise UnsupportedError(
                f"prototypes have their own cells and sites: strategy {self.strategy!r} cannot keep given "
                "ones; use 'diffusion' or 'auto'"
            )

    @property
    def known_types(self) -> bool:
        """Whether known prototypes take part."""
        return self.strategy != "diffusion" and not self.fixed.geometry


class StructureGenerator:
    """Crystal structure prediction: known prototypes, refined and ranked, and diffusion for what is new.

    model: one with noise heads; None is "gemsdiff", or "dao-g" where only that will do: for guidance,
    partial noising and the probability-flow solvers. energy_model: with an energy head for noisy crystals.
    potential: ranks prototypes by energy and relaxes them, None leaves them as they are. All take a shipped
    name, a path, a "hf://" address or a CrystalModel, and the latter two are loaded when first needed.
    atlas: the prototypes known; None is the shipped one. ranker: None is the shipped one. solver: how
    diffusion samples, see `sample.solvers`. device None picks CUDA if present. `report` holds the counts of
    the latest call.
    """

    def __init__(
        self,
        model: ModelLike | None = None,
        energy_model: ModelLike | None = "dao-p-diffusion",
        device: str | None = None,
        dtype: torch.dtype | str = torch.float32,
        *,
        potential: ModelLike | None = "dao-p",
        atlas: PrototypeAtlas | None = None,
        ranker: Ranker | None = None,
        solver: Solver = "pc",
        max_pairs: int | None = None,
        max_redraws: int = 3,
    ) -> None:
        self.device = pick_device(device)
        self.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.energy_model, self.potential = energy_model, potential
        self._atlas, self.ranker, self.solver = atlas, ranker, solver
        self._choice = model
        self._taken: ModelLike | None = None
        self._take()
        self.max_pairs, self.max_redraws = max_pairs, max_redraws
        self.report = SampleReport()

    def _take(self, scores: bool = False) -> None:
        """Load the network that the user chose or, left to us, one that can; scores: the call needs them."""
        ours = SCORES if scores or self.solver in get_args(Method) else DRAWS
        choice = ours if self._choice is None else self._choice
        if choice is self._taken:
            return
        model = self._load(choice)
        if not model.has_noise:
            name = model.card.get("name", "this model")
            raise UnsupportedError(f"{name} cannot generate: it has no noise heads. Use 'dao-g'.")
        self.model, self.noise, self._taken = model, recipes.noise_for(model), choice

    @property
    def atlas(self) -> PrototypeAtlas:
        if self._atlas is None:
            self._atlas = PrototypeAtlas.default()
        return self._atlas

    def sample(
        self,
        composition: CompositionLike | Sequence[CompositionLike],
        n: int = 1,
        *,
        formula_units: FormulaUnitsLike = "auto",
        strategy: Strategy = "auto",
        min_atoms: int = 1,
        max_atoms: int | None = None,
        space_group: int | str | None = None,
        lattice: Lattice | ArrayLike | None = None,
        fixed: Structure | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float = 0.0,
        noise_level: float = 0.0,
        rank_by: RankBy | None = "probability",
        distinct: bool = True,
        same_formula: bool = True,
        return_trajectory: bool = False,
        progress: bool = True,
    ) -> Any:
        """n structures of a composition (of each Z, if formula_units is a range), the likeliest first.

        composition: a formula counts as one formula unit, exactly as written: "Cs2V6Sb10" with
        formula_units=1 has 18 atoms. A chemical system such as "Li-O" stands for its likeliest formulas,
        which share the n structures. formula_units="auto" takes a formula that can be reduced as the cell
        content; for a reduced one, prototypes of all sizes compete, and diffusion draws the most common Z of
        training crystals like it. min_atoms, max_atoms: of the cell; max_atoms None is the largest the
        network was trained on, or the largest of the atlas where prototypes take part.

        strategy: "hybrid" puts the elements on the sites of known structure types (`crystalml.prototypes`),
        relaxes them with the potential and ranks them; "prototype" leaves them as they are; both find
        nothing of a new type and warn where that gives fewer than n. "diffusion" draws everything from noise.
        "auto" is hybrid first, then diffusion for what is missing. noise_level: hybrid's candidates are first
        noised to this share of the noise levels and denoised again (0: not; measured in docs/generate.md).

        space_group: number or symbol, kept by construction and checked with spglib. lattice: the cell, or its
        matrix. fixed: a part of the crystal, whose cell and sites stay while diffusion adds the other atoms.

        guidance > 0 steers diffusion to low energy (DAO, Algorithm 1). steps: of the sampler; None is 25 for
        GemsDiff and what the solver says for others. rank_by: the ranker's "probability" (diffusion's draws
        keep their order), the potential's "energy" per atom, or None. distinct=True leaves out what is the
        same crystal as one before it. same_formula=False, for new polymorphs: as if none were known.

        A draw depends on (seed, composition, index) only, up to rounding, whatever the batch; one with atoms
        closer than 0.5 A, no volume or NaN is redrawn up to max_redraws times, then left out with a warning
        (see `report`). Returns `Samples`, a list of Structures, for one composition, and a list of such lists
        for a sequence; with return_trajectory a pair, the second having for each structure a list of about 50
        on the way to it. Every structure says in `.properties` where it comes from.
        """
        wish = Wish(
            n, strategy, seed, guidance, steps, noise_level, rank_by, distinct, same_formula,
            return_trajectory, progress, Fixed.of(space_group, lattice, fixed),
        )  # fmt: skip
        many = hasattr(composition, "__iter__") and not isinstance(composition, str | Composition | Mapping)
        wanted: list[Any] = list(composition) if many else [composition]  # type: ignore[arg-type]
        answers, paths = self._sample(wanted, wish, (formula_units, min_atoms, max_atoms))
        answer = (answers, paths) if many else (answers[0], paths[0])
        return answer if return_trajectory else answer[0]

    def _sample(
        self, wanted: Sequence[Any], wish: Wish, sizes: tuple[FormulaUnitsLike, int, int | None]
    ) -> tuple[list[Samples], list[list[list[Structure]]]]:
        """The structures of each composition wanted, and the way to each; `report` counts them."""
        self._take(scores=bool(wish.guidance or wish.noise_level))
        reader = Reader(self.atlas, self.model.card, wish.known_types, *sizes, wish.fixed.space_group)
        groups = [group for i, item in enumerate(wanted) for group in reader.groups(item, i, wish.n)]
        for group in groups:
            wish.fixed.check(group.drawn)
        self.report = SampleReport()
        answers: list[Samples] = [Samples() for _ in wanted]
        paths: list[list[list[Structure]]] = [[] for _ in wanted]
        for group, items in zip(groups, self._answer(groups, wish), strict=True):
            for structure, frames in self._ordered(items, wish):
                answers[group.owner].append(structure)
                paths[group.owner].append(frames)
        self.report.returned = sum(map(len, answers))
        self.report.missing = max(0, self.report.requested - self.report.returned - self.report.duplicates)
        return answers, paths

    def _answer(self, groups: Sequence[Group], wish: Wish) -> list[list[Answer]]:
        """For every group what was found, prototypes first, then diffusion for what they left open."""
        self.report.requested = sum(group.want for group in groups)
        found = self._known(groups, wish) if wish.known_types else [[] for _ in groups]
        if wish.strategy not in ("auto", "diffusion"):
            if wish.guidance:
                warnings.warn("guidance not used: it is diffusion's", stacklevel=4)
            _warn_of_fewer(groups, found, wish.fixed)
            return found
        trained = self.model.card.get("max_atoms") if wish.strategy == "auto" else None
        draws: list[Draw] = []
        owners: list[int] = []
        for k, group in enumerate(groups):
            if (left := group.want - len(found[k])) <= 0:
                continue
            if why_not := self._undrawable(group, trained, wish, bool(found[k])):
                warnings.warn(f"{left} structures fewer than asked for: {why_not}", stacklevel=4)
                continue
            draws += [Draw(group.drawn, len(draws) + i, len(found[k]) + i) for i in range(left)]
            owners += [k] * left
        if not draws and wish.known_types and any(found):
            self._warn_of_unused(wish)
        for position, answer in sorted(self._diffuse(draws, wish).items()):
            found[owners[position]].append(answer)
        return found

    def _undrawable(self, group: Group, trained: int | None, wish: Wish, some: bool) -> str:
        """Why diffusion is not asked for what prototypes left open; some: whether they found any."""
        cell, number = group.drawn, wish.fixed.space_group
        known = f"the atlas knows no more prototypes for {cell.formula}"
        if trained is not None and cell.atoms > trained:
            return (
                f"{known}, whose {cell.atoms} atoms a cell are more than the {trained} of the network's "
                f"training; strategy='diffusion' with max_atoms={cell.atoms} draws it all the same"
            )
        if some and number is not None and not can_place(group_of(self.atlas, number), cell.numbers):
            return (
                f"{known}, and space group {number} has no sites for {cell.atoms} atoms of it; try other "
                "formula units"
            )
        return ""

    def _warn_of_unused(self, wish: Wish) -> None:
        """Says which settings of drawing the user made in vain, where known prototypes were enough."""
        refining = wish.noise_level > 0  # hybrid denoises with the model, in so many steps
        made = {
            "model": self._choice is not None and not refining,
            "steps": wish.steps is not None and not refining,
            "guidance": wish.guidance > 0,
        }
        if names := [name for name, given in made.items() if given]:
            warnings.warn(
                f"{', '.join(names)} not used: known prototypes gave all structures asked for; "
                "strategy='diffusion' draws them",
                stacklevel=5,
            )

    def _known(self, groups: Sequence[Group], wish: Wish) -> list[list[Answer]]:
        """Structures on known prototypes, likeliest first."""
        hybrid = self._hybrid(wish)
        found: list[list[Answer]] = []
        with ProgressBar(wish.progress, "prototypes") as bar:
            bar.add(len(groups))
            for start in range(0, len(groups), PART):
                part = groups[start : start + PART]
                requests = [
                    Request([c.content for c in g.cells], wish.fixed.space_group, wish.same_formula)
                    for g in part
                ]
                answers = hybrid(requests, [group.want for group in part])
                for group, structures in zip(part, answers, strict=True):
                    structures = [s for s in structures if not wish.fixed.broken(s)]
                    found.append([(s, [s]) for s in structures])
                    for structure in structures:
                        self._label(structure, group, wish)
                bar.advance(len(part))
        return found

    def _label(self, structure: Structure, group: Group, wish: Wish) -> None:
        properties = structure.properties
        properties["formula_units"] = group.cells[properties.pop("cell")].z
        properties["crystalml_version"] = __version__
        if wish.strategy == "prototype":
            properties["strategy"] = "prototype"
            return
        self._name_potential(structure)

    def _name_potential(self, structure: Structure) -> None:
        if isinstance(self.potential, CrystalModel):  # loaded by now, if it is any
            structure.properties["potential"] = self.potential.card.get("name") or "custom"
            structure.properties["potential_sha256"] = self.potential.card.get("sha256")

    def _hybrid(self, wish: Wish) -> Hybrid:
        if wish.strategy == "prototype":
            return Hybrid(self.atlas)
        potential = Predictor(self._potential(), self.max_pairs) if self.potential is not None else None
        denoising = None
        if wish.noise_level:
            name: Solver = "heun" if isinstance(self.noise.frac, WrappedNormal) else "pc"
            start = max(1, round(wish.noise_level * self.noise.num_steps))
            sampler = make_sampler(name, self.noise, wish.steps or min(REFINING, start), start)
            denoising = Denoising(self.model, sampler, wish.seed)
        return Hybrid(self.atlas, potential, self.ranker, denoising=denoising)

    def _diffuse(self, draws: list[Draw], wish: Wish) -> Found:
        sampler = self._sampler(wish)
        card = self.model.card
        provenance = {
            "model": card.get("name") or card.get("source") or "custom",
            "sha256": card.get("sha256"),
            "solver": self.solver,
            "steps": len(sampler.levels()) - 1,
            "guidance": wish.guidance,
            "fixed": wish.fixed.describe(),
        }
        guide = self._guide(wish.guidance)
        engine = Diffusion(
            self.model, sampler, guide, wish.fixed, self.atlas, wish.seed, provenance, self.max_pairs,
            self.max_redraws, wish.keep_frames,
        )  # fmt: skip
        return engine.run(draws, self.report, wish.progress)

    def _ordered(self, items: list[Answer], wish: Wish) -> list[Answer]:
        """One group's answers, without duplicates, by energy if that is wished."""
        if wish.distinct:
            new = Distinct()
            kept = [item for item in items if new(item[0])]
            self.report.duplicates += len(items) - len(kept)
            items = kept
        if wish.rank_by != "energy" or not items:
            return items
        unknown = [s for s, _ in items if not isfinite(s.properties.get("energy_per_atom", nan))]
        if unknown:
            energies = Predictor(self._potential())(to_batch(unknown), forces=False)["energy_per_atom"]
            for structure, energy in zip(unknown, energies.tolist(), strict=True):
                structure.properties["energy_per_atom"] = energy
                self._name_potential(structure)

        def order(item: Answer) -> tuple[bool, float]:  # what has no energy last
            energy = item[0].properties["energy_per_atom"]
            return not isfinite(energy), energy

        return sorted(items, key=order)

    def _potential(self) -> CrystalModel:
        """The potential, loaded and kept for the next call."""
        if self.potential is None:
            raise InputError("energies need a potential: StructureGenerator(potential='dao-p').")
        self.potential = model = self._load(self.potential)
        if not model.has_energy:
            raise UnsupportedError("the potential has no energy head: use 'dao-p', or None for none.")
        return model

    def _sampler(self, wish: Wish) -> Sampler:
        fewer = QUICK if self.solver == "pc" and isinstance(self.noise.frac, TorusDDPM) else None
        return make_sampler(self.solver, self.noise, wish.steps or fewer)

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

    def _load(self, model: ModelLike) -> CrystalModel:
        return as_model(model, self.device, self.dtype)


def _warn_of_fewer(groups: Sequence[Group], found: Sequence[list[Answer]], fixed: Fixed) -> None:
    """Says so where prototypes alone were asked and gave fewer than wanted."""
    short = [group for group, items in zip(groups, found, strict=True) if len(items) < group.want]
    if short:
        missing = sum(group.want for group in groups) - sum(map(len, found))
        name = short[0].cells[0].composition.reduced_formula
        within = f" in {fixed.describe()}" if fixed.space_group is not None else ""
        warnings.warn(
            f"{missing} structures fewer than asked for: the atlas knows no more prototypes for {name}"
            f"{within}; try other formula units, or strategy 'auto' or 'diffusion'",
            stacklevel=5,
        )
