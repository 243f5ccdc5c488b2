"""Draw structures by diffusion: batches by size, redraws of what is no crystal, what is fixed in place."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pymatgen.core import Structure

from crystalml import __version__, guard
from crystalml.convert import to_batch, to_structures
from crystalml.crystal import CrystalBatch
from crystalml.metrics.validity import MIN_VOLUME
from crystalml.models.model import CrystalModel
from crystalml.noise.rng import Draws
from crystalml.predict import pack, pair_budget
from crystalml.progress import ProgressBar
from crystalml.prototypes import PrototypeAtlas
from crystalml.prototypes.wyckoff import group_of, orbits, place
from crystalml.request import Draw, Fixed
from crystalml.sample.base import Denoiser, Guide, Hold, Sampler, as_draws
from crystalml.sample.known import Known
from crystalml.sample.symmetric import Symmetric
from crystalml.sample.template import template

FRAMES = 50  # kept of a trajectory, evenly spaced over the steps, the sample itself last

Found = dict[int, tuple[Structure, list[Structure]]]
"""Position of a draw -> its structure and the frames on the way to it."""


@dataclass
class SampleReport:
    """What became of a request: rejected counts draws by reason, missing counts samples given up on."""

    requested: int = 0
    returned: int = 0
    missing: int = 0
    duplicates: int = 0
    rejected: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Diffusion:
    """A network with its sampler, and what limits the draws. provenance: goes into every structure."""

    model: CrystalModel
    sampler: Sampler
    guide: Guide | None
    fixed: Fixed
    atlas: PrototypeAtlas
    seed: int
    provenance: dict[str, Any]
    max_pairs: int | None = None
    max_redraws: int = 3
    keep_frames: bool = False

    def run(self, draws: list[Draw], report: SampleReport, progress: bool) -> Found:
        """Sample all draws; what is still invalid after max_redraws is left out with a warning."""
        found: Found = {}
        device = next(self.model.parameters()).device
        budget = self.max_pairs or pair_budget(device, gradient=self.guide is not None)
        steps = len(self.sampler.levels()) - 1
        before = report.rejected.copy()
        with ProgressBar(progress and bool(draws), "sampling") as bar:
            pending = draws
            while pending:
                counts = torch.tensor([draw.cell.atoms for draw in pending])
                batches = [[pending[i] for i in group.tolist()] for group in pack(counts, budget)]
                bar.add(len(pending) * steps)
                pending = []
                for batch in batches:
                    pending += self._sort_out(batch, self._draw(batch, steps, bar), report, found)
        if missing := len(draws) - len(found):
            why = ", ".join(f"{count} x {reason}" for reason, count in (report.rejected - before).items())
            warnings.warn(
                f"{missing} of {len(draws)} samples were still invalid after {self.max_redraws} redraws and "
                f"are left out ({why}). Try more steps or another seed.",
                stacklevel=4,
            )
        return found

    def _draw(self, batch: list[Draw], steps: int, bar: ProgressBar) -> list[CrystalBatch]:
        x, draws, denoiser, guide, hold = self._problem(batch)
        kept = {round(i * steps / FRAMES) for i in range(FRAMES)} if self.keep_frames else set()
        frames: list[CrystalBatch] = []
        for step, state in enumerate(self.sampler.trajectory(denoiser, x, draws, guide, hold)):
            if step in kept or step == steps:  # step 0 is the prior, the last one the sample
                frames.append(state.to("cpu"))
            bar.advance(len(batch) if step else 0)
        return frames

    def _problem(
        self, batch: Sequence[Draw]
    ) -> tuple[CrystalBatch, Draws, Denoiser, Guide | None, Hold | None]:
        """Template, random numbers, denoiser, guide and hold of a batch, with what is fixed built in."""
        weight = next(self.model.parameters())
        keys = torch.tensor([draw.seed(self.seed) for draw in batch], device=weight.device)
        if self.fixed.space_group is not None:
            group = group_of(self.atlas, self.fixed.space_group)
            drawn = [orbits(group, *place(group, d.cell.numbers, d.seed(self.seed))) for d in batch]
            x = template([numbers for _, numbers in drawn], weight.device, weight.dtype)
            law = Symmetric.of([shape for shape, _ in drawn], self.sampler.noise.lattice, weight.device)
            guide = self.guide and law.guide(self.guide)
            return x, law.draws(as_draws(keys, x), x), law.denoiser(self.model.denoise), guide, law.hold
        x = template([draw.cell.numbers for draw in batch], weight.device, weight.dtype)
        draws = as_draws(keys, x)
        if not self.fixed.geometry:
            return x, draws, self.model.denoise, self.guide, None
        known, sites = known_part(self.fixed, x)
        cells = torch.ones(len(x), dtype=torch.bool, device=x.device)
        held = Known(self.sampler.noise, known, cells, sites, draws)
        return x, draws, self.model.denoise, self.guide, held

    def _sort_out(
        self, batch: list[Draw], frames: list[CrystalBatch], report: SampleReport, found: Found
    ) -> list[Draw]:
        """Convert and keep the valid samples; return the draws to repeat."""
        again: list[Draw] = []
        parts = [frame.split() for frame in frames]
        for i, draw in enumerate(batch):
            structure, reason = self._accept(parts[-1][i])
            if structure is None:
                report.rejected[reason] += 1
                if draw.attempt < self.max_redraws:
                    again.append(Draw(draw.cell, draw.position, draw.index, draw.attempt + 1))
                continue
            structure.properties.update(
                strategy="diffusion",
                crystalml_version=__version__,
                formula_units=draw.cell.z,
                index=draw.index,
                attempts=draw.attempt + 1,
                seed=self.seed,
                **self.provenance,
            )
            usable = (guard.standardise(part[i]) for part in parts[:-1] if guard.is_finite(part[i]))
            earlier = [to_structures(part)[0] for part in usable if float(part.volume[0]) > MIN_VOLUME]
            found[draw.position] = (structure, [*earlier, structure])
        return again

    def _accept(self, x: CrystalBatch) -> tuple[Structure | None, str]:
        structure, reason = guard.to_valid_structure(x)
        if structure is not None and (why := self.fixed.broken(structure)):
            return None, why
        return structure, reason


def known_part(fixed: Fixed, x: CrystalBatch) -> tuple[CrystalBatch, torch.Tensor]:
    """(x with the fixed lattice and sites, (n,) which sites those are).

    The fixed sites take the first atoms of their element in each cell.
    """
    shape: Structure | None = fixed.sites
    if shape is None:
        assert fixed.lattice is not None
        matrix, atoms, places = np.array(fixed.lattice.matrix), [], np.zeros((0, 3))
    else:
        one = guard.standardise(to_batch(shape, dtype=torch.float64))
        matrix, atoms, places = one.lattice[0].numpy(), one.numbers.tolist(), one.frac.numpy()
    if np.linalg.det(matrix) < 0:  # the same lattice by its right-handed vectors
        matrix = -matrix
    lattice = torch.as_tensor(matrix).to(x.lattice).expand(len(x), 3, 3)
    frac, held = x.frac.clone(), torch.zeros(len(x.numbers), dtype=torch.bool, device=x.device)
    numbers = x.numbers.tolist()
    for start, count in zip(x.offsets.tolist(), x.num_atoms.tolist(), strict=True):
        free = list(range(start, start + count))
        for z, site in zip(atoms, places, strict=True):
            row = next(k for k in free if numbers[k] == z)
            free.remove(row)
            held[row] = True
            frac[row] = torch.as_tensor(site).to(frac)
    return x.replace(lattice=lattice.clone(), frac=frac), held
