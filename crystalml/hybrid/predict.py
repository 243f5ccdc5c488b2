"""The pipeline: proposals of the atlas, denoised if asked for, relaxed in a batch, ranked, all different."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp

import numpy as np
from pymatgen.core import Structure

from crystalml.hybrid.rank import Ranker
from crystalml.hybrid.refine import Refined, denoise_all, relax_all, unrefined
from crystalml.models.model import CrystalModel
from crystalml.predict import Predictor
from crystalml.prototypes import PrototypeAtlas
from crystalml.prototypes.fingerprint import Distinct
from crystalml.prototypes.substitute import predictions
from crystalml.sample.base import Sampler

POOL = 40  # proposals looked at, at least: the right one is seldom beyond


@dataclass(frozen=True)
class Request:
    """cells: contents in question, element -> atoms. space_group: of the prototypes. same_formula: see
    `prototypes.predictions`.
    """

    cells: Sequence[Mapping[str, int]]
    space_group: int | None = None
    same_formula: bool = True


@dataclass(frozen=True)
class Denoising:
    """Partial noising of proposals before they are relaxed: to the sampler's start level and back."""

    model: CrystalModel
    sampler: Sampler
    seed: int = 0

    @property
    def noise_level(self) -> float:
        """Start level over T."""
        return (self.sampler.start or 0) / self.sampler.noise.num_steps

    def __call__(self, proposals: Sequence[Structure]) -> list[Structure]:
        seeds = [self._seed(structure) for structure in proposals]
        found = denoise_all(proposals, self.model, self.sampler, seeds)
        for structure in found:
            structure.properties["noise_level"] = self.noise_level
        return found

    def _seed(self, proposal: Structure) -> int:
        """A function of seed, formula and the proposal's place among the atlas's."""
        key = f"{self.seed}/{proposal.formula}/{proposal.properties['proposal']}"
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class Hybrid:
    """Known prototypes, refined and ranked.

    potential: relaxes proposals and tells their energies; None leaves them as the atlas gives them. ranker:
    None is the shipped one with a potential, chemical likeness alone without. pool: how many proposals a
    request are looked at, or as many as are asked for if that is more. relax_steps: most steps of relaxation.
    """

    atlas: PrototypeAtlas
    potential: Predictor | None = None
    ranker: Ranker | None = None
    pool: int = POOL
    relax_steps: int = 25
    denoising: Denoising | None = None

    def __call__(self, requests: Sequence[Request], n: int) -> list[list[Structure]]:
        """Up to n structures of each request, likeliest first, all different."""
        pools = [self.propose(request, max(n, self.pool)) for request in requests]
        return [self.choose(refined, n) for refined in self.refine(pools)]

    def propose(self, request: Request, most: int) -> list[Structure]:
        """The atlas's proposals, likeliest by chemistry first, all different."""
        found: list[Structure] = []
        new = Distinct()
        for structure in predictions(request.cells, self.atlas, request.same_formula, request.space_group):
            if new(structure):
                structure.properties["proposal"] = len(found)
                found.append(structure)
                if len(found) == most:
                    break
        return found

    def refine(self, pools: Sequence[Sequence[Structure]]) -> list[list[Refined]]:
        """Each pool denoised and relaxed; everything goes through the networks in common batches."""
        flat = [structure for pool in pools for structure in pool]
        if self.denoising is not None and flat:
            flat = self.denoising(flat)
        if self.potential is None or not self.relax_steps:
            refined = [unrefined(structure) for structure in flat]
        else:
            refined = relax_all(flat, self.potential, self.relax_steps)
        ends = np.cumsum([len(pool) for pool in pools]).tolist()
        return [refined[end - len(pool) : end] for end, pool in zip(ends, pools, strict=True)]

    def ranked(self, refined: Sequence[Refined]) -> list[tuple[float, Refined]]:
        """(log probability, proposal), likeliest first."""
        if not refined:
            return []
        ranker = self.ranker or (Ranker.by_score() if self.potential is None else Ranker.default())
        shares = ranker.log_probabilities(refined)
        order = np.argsort(-shares, kind="stable").tolist()
        return [(float(shares[k]), refined[k]) for k in order]

    def choose(self, refined: Sequence[Refined], n: int) -> list[Structure]:
        """The n likeliest that differ; if there are fewer, geometries before relaxation fill up."""
        ranked = self.ranked(refined)
        answers: list[Structure] = []
        new = Distinct()
        forms = [(share, item, item.structure) for share, item in ranked]
        forms += [(share, replace(item, energy=item.start_energy), item.start) for share, item in ranked]
        for share, item, form in forms:
            if len(answers) == n:
                break
            if new(form):
                structure = form.copy()
                structure.properties.update(
                    strategy="hybrid",
                    rank_score=share,
                    probability=exp(share),
                    energy_per_atom=item.energy,
                    relax_steps=item.steps if form is item.structure else 0,
                    index=len(answers),
                )
                structure.properties.setdefault("noise_level", 0.0)
                answers.append(structure)
        return answers
