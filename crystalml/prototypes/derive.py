"""Prototypes whose colours do not fit the target's amounts until two are merged or one is split.

Fe3O4 has magnetite's prototype when both its cations become iron; an ordered alloy has its parent's when one
element's orbits are shared by two. Both are one step from what was seen, hence less likely than a prototype
that fits as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalml.prototypes.align import regroupings
from crystalml.prototypes.similarity import Similarity
from crystalml.prototypes.tables import Counts, Tables

Array = NDArray[Any]

SPLITS = 6  # decorations of one prototype that are looked at; they differ by energy only
MAX_ORBITS = 16  # of a colour that is split: beyond, decorations are too many for any to be right

Found = tuple[float, int, tuple[int, ...], tuple[int, ...]]
"""(log evidence, prototype, atomic number of every orbit, elements of the closest crystal seen)"""


def merged(tables: Tables, similarity: Similarity, base: Sequence[int], counts: Counts) -> list[Found]:
    """Prototypes with one colour more than the target, two of which hold the same element."""
    out: list[Found] = []
    for key in tables.sizes(sum(counts), len(counts) + 1):
        elements, owner, weight = tables.stacked(key)
        for labels in set(_merging_labels(key, base, counts)):
            score = similarity.scores(np.array(labels), elements, weight)
            for total, p, nearest in by_prototype(score, elements, owner):
                colours = tables.colours_of(p)
                out.append((total, p, tuple(labels[k] for k in colours.tolist()), nearest))
    return out


def split(tables: Tables, similarity: Similarity, base: Sequence[int], counts: Counts) -> list[Found]:
    """Prototypes with one colour less, the orbits of one of which are shared by two elements."""
    out: list[Found] = []
    for i, j in combinations(range(len(counts)), 2):
        both = counts[i] + counts[j]
        rest = [(n, z) for k, (n, z) in enumerate(zip(counts, base, strict=True)) if k not in (i, j)]
        key = tuple(sorted([both, *(n for n, _ in rest)]))
        if key not in tables.groups:
            continue
        elements, owner, weight = tables.stacked(key)
        share = (counts[i], base[i]), (counts[j], base[j])
        for place, labels in _splitting_labels(key, rest, both):
            distance = sum(n * similarity.distances[z][elements[:, place]] for n, z in share) / both
            distance = distance + similarity.distances[labels[None], elements].sum(1)
            distance = distance - similarity.distances[labels[place], elements[:, place]]
            score = similarity.log_kernel(distance, len(key), weight)
            for total, p, nearest in by_prototype(score, elements, owner):
                shared = _decorations(tables, p, place, labels, share)
                out += [(total, p, decoration, nearest) for decoration in shared]
    return out


def _merging_labels(key: Counts, base: Sequence[int], counts: Counts) -> Iterator[tuple[int, ...]]:
    """Elements for the colours of `key` so that each element gets its amount, with one element twice."""
    for a, b in combinations(range(len(key)), 2):
        rest = [k for k in range(len(key)) if k not in (a, b)]
        sums = [key[a] + key[b], *(key[k] for k in rest)]
        if sorted(sums) != list(counts):
            continue
        order = sorted(range(len(sums)), key=lambda k: sums[k])  # k-th smallest sum <-> k-th smallest amount
        for chosen in regroupings(counts):
            labels = [0] * len(key)
            for slot, target in zip(order, chosen, strict=True):
                for colour in (a, b) if slot == 0 else (rest[slot - 1],):
                    labels[colour] = base[target]
            yield tuple(labels)


def _splitting_labels(key: Counts, rest: Sequence[tuple[int, int]], both: int) -> Iterator[tuple[int, Array]]:
    """(colour that is split, elements of the others); the entry of the split colour is any element."""
    seen = set()
    items = sorted([*rest, (both, 0)])  # 0 marks the pair; amounts ascend as those of `key` do
    for order in regroupings(tuple(n for n, _ in items)):
        labels = tuple(items[k][1] for k in order)
        if labels not in seen:
            seen.add(labels)
            yield labels.index(0), np.array(labels)


def _decorations(
    tables: Tables, p: int, place: int, labels: Array, share: tuple[tuple[int, int], tuple[int, int]]
) -> Iterator[tuple[int, ...]]:
    """Elements of all orbits, for the ways to give the first element of `share` its atoms; SPLITS at most."""
    colours, sizes = tables.colours_of(p), tables.multiplicity_of(p)
    mine = np.flatnonzero(colours == place).tolist()
    (amount, first), (_, second) = share
    if not 2 <= len(mine) <= MAX_ORBITS:
        return
    found = 0
    for size in range(1, len(mine)):
        for chosen in combinations(mine, size):
            if sizes[list(chosen)].sum() == amount:
                out = labels[colours]
                out[mine] = second
                out[list(chosen)] = first
                yield tuple(out.tolist())
                found += 1
                if found == SPLITS:
                    return


def by_prototype(score: Array, elements: Array, owner: Array) -> Iterator[tuple[float, int, tuple[int, ...]]]:
    """(log of the summed kernel, prototype, elements of the closest tuple); tuples come sorted by owner."""
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    totals = np.logaddexp.reduceat(score, starts) if len(starts) else np.zeros(0)
    ends = [*starts[1:].tolist(), len(owner)]
    for start, end, total in zip(starts.tolist(), ends, totals.tolist(), strict=True):
        nearest = start + int(np.argmax(score[start:end]))
        yield total, int(owner[start]), tuple(elements[nearest].tolist())
