"""The pipeline: proposals of the atlas, denoised if asked for, ranked, the best relaxed, all different."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp

import numpy as np
from pymatgen.core import Structure

from crystalml.hybrid.rank import Ranker, features_after
from crystalml.hybrid.refine import Judged, Trust, denoise_all, judge_all, relax_all
from crystalml.models.model import CrystalModel
from crystalml.noise.rng import stable_seed
from crystalml.predict import Predictor
from crystalml.prototypes import PrototypeAtlas
from crystalml.prototypes.fingerprint import Distinct
from crystalml.prototypes.substitute import predictions
from crystalml.sample.base import Sampler

POOL = 60  # proposals looked at, at least: the right one is seldom beyond
SHORTLIST = 20  # of them are relaxed, at least: energies of minima tell more than those of proposals


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

    def __call__(self, proposals: Sequence[Structure]) -> list[Structure]:
        seeds = [self._seed(structure) for structure in proposals]
        found = denoise_all(proposals, self.model, self.sampler, seeds)
        card = self.model.card
        notes = {
            "denoiser": card.get("name") or card.get("source") or "custom",
            "denoiser_sha256": card.get("sha256"),
            "denoiser_steps": len(self.sampler.levels()) - 1,
            "seed": self.seed,
        }
        for structure in found:
            if "noise_level" in structure.properties:
                structure.properties.update(notes)
        return found

    def _seed(self, proposal: Structure) -> int:
        """A function of seed, formula and the proposal's place among the atlas's."""
        return stable_seed(self.seed, proposal.formula, proposal.properties["proposal"])


@dataclass(frozen=True)
class Hybrid:
    """Known prototypes, ranked by chemistry and energy, and relaxed.

    potential: tells the energies of proposals and relaxes the answers; None leaves them as the atlas gives
    them. ranker: None is the shipped one where there are energies, chemical likeness alone where there are
    none. pool: how many proposals of a request are looked at, or as many as are asked for if that is more.
    relax_steps: most steps of relaxation, 0 for none. trust: how far it may lead.
    """

    atlas: PrototypeAtlas
    potential: Predictor | None = None
    ranker: Ranker | None = None
    pool: int = POOL
    relax_steps: int = 15
    trust: Trust = field(default_factory=Trust)
    denoising: Denoising | None = None

    def __call__(self, requests: Sequence[Request], n: int | Sequence[int]) -> list[list[Structure]]:
        """Up to n structures of each request, likeliest first, all different; n may be one for each.

        What a request is answered does not depend on the others.
        """
        wanted = _each(n, len(requests))
        pools = [
            self.propose(request, max(k, self.pool)) for request, k in zip(requests, wanted, strict=True)
        ]
        return self.choose([self.ranked(row) for row in self.judged(pools)], wanted)

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

    def judged(self, pools: Sequence[Sequence[Structure]]) -> list[list[Judged]]:
        """The proposals, denoised if that is asked for, with energies; all in common batches."""
        flat = [structure for pool in pools for structure in pool]
        if self.denoising is not None and flat:
            flat = self.denoising(flat)
        judged = [Judged(s) for s in flat] if self.potential is None else judge_all(flat, self.potential)
        ends = np.cumsum([len(pool) for pool in pools]).tolist()
        return [judged[end - len(pool) : end] for end, pool in zip(ends, pools, strict=True)]

    def ranked(self, judged: Sequence[Judged]) -> list[Structure]:
        """The proposals of one request, likeliest first, with rank_score, the log of their probability."""
        if not judged:
            return []
        shares = self._ranker.log_probabilities(judged)
        out = []
        for k in np.argsort(-shares, kind="stable").tolist():
            structure = judged[k].structure
            share = float(shares[k])
            structure.properties.update(
                strategy="hybrid", rank_score=share, probability=exp(share), energy_per_atom=judged[k].energy,
                relaxed=False, relax_steps=0,
            )  # fmt: skip
            structure.properties.setdefault("noise_level", 0.0)
            out.append(structure)
        return out

    def relaxed(self, ranked: Sequence[Sequence[Structure]], n: int | Sequence[int]) -> list[list[Structure]]:
        """The n or SHORTLIST likeliest of each request as relaxation leaves them, in order; in one batch."""
        sizes = [max(k, SHORTLIST) for k in _each(n, len(ranked))]
        best = [list(row[:k]) for row, k in zip(ranked, sizes, strict=True)]
        flat = [structure for row in best for structure in row]
        if self.potential is None or not self.relax_steps or not flat:
            return best
        ends = iter(relax_all(flat, self.potential, self.relax_steps, trust=self.trust))
        return [[next(ends) for _ in row] for row in best]

    def choose(self, ranked: Sequence[Sequence[Structure]], n: int | Sequence[int]) -> list[list[Structure]]:
        """The n likeliest of each request, relaxed and ranked anew; if there are fewer, the starts of
        relaxations follow.
        """
        return self.answers(self.relaxed(ranked, n), ranked, n)

    def answers(
        self,
        relaxed: Sequence[Sequence[Structure]],
        ranked: Sequence[Sequence[Structure]],
        n: int | Sequence[int],
    ) -> list[list[Structure]]:
        """As `choose`, of what `relaxed` returned."""
        rows = zip(relaxed, ranked, _each(n, len(ranked)), strict=True)
        return [
            distinct([*self._again(ends), *row[len(ends) :], *row[: len(ends)]], k) for ends, row, k in rows
        ]

    @property
    def _ranker(self) -> Ranker:
        return self.ranker or (Ranker.by_score() if self.potential is None else Ranker.default())

    def _again(self, answers: Sequence[Structure]) -> list[Structure]:
        """Answers in the order of what relaxation told, if there was one."""
        if not answers or self.potential is None or not self.relax_steps:
            return list(answers)
        before = np.array([s.properties["rank_score"] for s in answers])
        shares = self._ranker.log_shares_after(features_after(answers, before))
        for structure, share in zip(answers, shares.tolist(), strict=True):
            structure.properties.update(rank_score=share, probability=exp(share))
        return [answers[k] for k in np.argsort(-shares, kind="stable").tolist()]


def _each(n: int | Sequence[int], count: int) -> list[int]:
    return [n] * count if isinstance(n, int) else list(n)


def distinct(structures: Iterable[Structure], n: int) -> list[Structure]:
    """The first n that differ, numbered by the property index."""
    new = Distinct()
    found: list[Structure] = []
    for structure in structures:
        if len(found) == n:
            break
        if new(structure):
            structure.properties["index"] = len(found)
            found.append(structure)
    return found
