"""Which elements stand in for which: a metric on elements, learned from crystals that share prototypes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crystalml.prototypes.align import regroupings
from crystalml.prototypes.elements import descriptors
from crystalml.prototypes.tables import Counts, Tables

Array = NDArray[Any]

MAX_COLOURS = 9
LEAST = 200  # tuples below which nothing is learned and the descriptors speak alone
ASKED = 1.5  # weight of a tuple from which on it is asked for: someone made that crystal, or it is stable


@dataclass(frozen=True)
class Similarity:
    """log k(a, b) = -t log(1 + s_c D / t), D = sum_k |e(a_k) - e(b_k)|^2 between tuples of c elements.

    A Student kernel: far relatives, often the only ones, count for more than in a Gaussian (t = inf).
    embedding: (119, d) e. sharpness: (MAX_COLOURS + 1,) s. popularity: exponent of the weight of the crystals
    that had a tuple. tail: t.
    """

    embedding: Array
    sharpness: Array
    popularity: float
    tail: float = np.inf

    @cached_property
    def distances(self) -> Array:
        """(119, 119) squared distances."""
        gap = self.embedding[:, None] - self.embedding
        return (gap**2).sum(-1)

    def scores(self, target: Array, elements: Array, weight: Array) -> Array:
        """(m,) log kernel of one assignment (c,) against tuples (m, c) of some weight."""
        return self.log_kernel(self.distances[target[None], elements].sum(1), len(target), weight)

    def log_kernel(self, distance: Array, colours: int, weight: Array | float) -> Array:
        """(m,) from summed squared distances."""
        scaled = self.sharpness[min(colours, MAX_COLOURS)] * distance
        if np.isfinite(self.tail):
            scaled = self.tail * np.log1p(scaled / self.tail)
        out: Array = self.popularity * np.log(weight) - scaled
        return out

    def tensors(self) -> dict[str, Array]:
        return {
            "similarity.embedding": self.embedding.astype(np.float32),
            "similarity.sharpness": self.sharpness.astype(np.float32),
            "similarity.popularity": np.array([self.popularity], np.float32),
            "similarity.tail": np.array([self.tail], np.float32),
        }

    @staticmethod
    def from_tensors(tensors: dict[str, Array]) -> Similarity:
        return Similarity(
            tensors["similarity.embedding"].astype(np.float64),
            tensors["similarity.sharpness"].astype(np.float64),
            float(tensors["similarity.popularity"][0]),
            float(tensors.get("similarity.tail", [np.inf])[0]),
        )

    @staticmethod
    def of_descriptors() -> Similarity:
        """Nothing learned: plain distances of `descriptors`."""
        return Similarity(descriptors(), np.ones(MAX_COLOURS + 1), 0.3)


def learn(
    tables: Tables, dim: int = 24, epochs: int = 6, batch: int = 64, most: int = 4000, seed: int = 0,
    rate: float = 4e-3,
) -> Similarity:  # fmt: skip
    """Neighbourhood components: the metric under which a crystal's own prototype is the likeliest.

    p(prototype | composition) is proportional to the sum of k over the tuples of that prototype, the
    crystal's own tuple left out, against those of all prototypes with the same amounts (Goldberger et al.,
    NIPS 2004). Tuples of little weight are evidence, but are not asked for. Elements are embedded by a linear
    map of their descriptors plus a free part drawn to zero, so that rare elements follow their properties.
    `most` tuples of a group, drawn by the seed, enter a step.
    """
    if int(tables.tuples.sum()) < LEAST:
        return Similarity.of_descriptors()
    generator = np.random.default_rng(seed)
    features = torch.as_tensor(descriptors(), dtype=torch.float32)
    start = torch.as_tensor(generator.normal(size=(features.shape[1], dim)) / features.shape[1] ** 0.5)
    linear = start.float().requires_grad_()
    free = torch.zeros(len(features), dim, requires_grad=True)
    sharpness = torch.zeros(MAX_COLOURS + 1, requires_grad=True)
    popularity = torch.tensor(0.3, requires_grad=True)
    tail = torch.tensor(3.0, requires_grad=True)
    groups = {key: tables.stacked(key) for key in sorted(tables.groups)}
    steps = sum(1 for _ in _batches(groups, batch, generator)) * epochs
    optimiser = torch.optim.Adam([linear, free, sharpness, popularity, tail], rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps + 1)
    for _ in range(epochs):
        for key, rows in _batches(groups, batch, generator):
            embedding = features @ linear + free
            table = (embedding[:, None] - embedding).square().sum(-1)
            scale = sharpness[min(len(key), MAX_COLOURS)].exp()
            loss = _loss(table * scale, popularity, tail.exp(), groups[key], key, rows, most, generator)
            loss = loss * len(rows) / batch  # of a small group there are few: crystals count, not batches
            optimiser.zero_grad()
            (loss + 1e-4 * free.square().sum()).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        learned = (features @ linear + free).double().numpy()
        return Similarity(learned, sharpness.exp().double().numpy(), float(popularity), float(tail.exp()))


def _batches(
    groups: dict[Counts, tuple[Array, Array, Array]], batch: int, generator: np.random.Generator
) -> Iterator[tuple[Counts, Array]]:
    """Tuples that are asked for and whose prototype has others, shuffled, those of one group together."""
    out = []
    weights = np.concatenate([weight for _, _, weight in groups.values()])
    least = ASKED if int((weights >= ASKED).sum()) >= LEAST else 0.0
    for key, (_, owner, weight) in groups.items():
        shared = np.bincount(owner)[owner] > 1 if len(owner) else np.zeros(0, bool)
        rows = generator.permutation(np.flatnonzero(shared & (weight >= least)))
        if len(np.unique(owner)) > 1:
            out += [(key, rows[i : i + batch]) for i in range(0, len(rows), batch)]
    for position in generator.permutation(len(out)):
        yield out[position]


def _loss(
    table: Tensor, popularity: Tensor, tail: Tensor, group: tuple[Array, Array, Array], key: Counts,
    rows: Array, most: int, generator: np.random.Generator,
) -> Tensor:  # fmt: skip
    elements, owner, weights = group
    pool = np.arange(len(owner))
    if len(pool) > most:
        pool = generator.choice(len(pool), most, replace=False)
    weight = popularity * torch.as_tensor(np.log(weights[pool]), dtype=torch.float32)
    others = torch.as_tensor(elements[pool])
    every = list(regroupings(key))[:6]
    scores = []
    for order in every:
        target = torch.as_tensor(elements[rows][:, list(order)])
        terms = [table[target[:, k]][:, others[:, k]] for k in range(len(key))]
        scores.append(weight - tail * torch.log1p(torch.stack(terms).sum(0) / tail))
    itself = torch.as_tensor(pool[None] == rows[:, None])
    own = torch.as_tensor(owner[pool][None] == owner[rows][:, None]) & ~itself
    first = scores[0].masked_fill(itself, -torch.inf)
    usable = own.any(1)
    if not bool(usable.any()):
        return table.sum() * 0
    total = torch.logsumexp(torch.cat([first, *scores[1:]], 1)[usable], 1)
    right = torch.logsumexp(first.masked_fill(~own, -torch.inf)[usable], 1)
    return (total - right).mean()
