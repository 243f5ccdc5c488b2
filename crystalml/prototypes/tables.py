"""The prototypes as flat tables of small integers: what an atlas holds in memory and on disk."""

from __future__ import annotations

import json
import lzma
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from crystalml.errors import FileReadError
from crystalml.prototypes.align import Closeness, place, regroupings
from crystalml.prototypes.cluster import Prototype
from crystalml.prototypes.symmetry import snap, space_group, symmetric_cell

Array = NDArray[Any]
Counts = tuple[int, ...]
Elements = tuple[int, ...]

FORMAT = "crystalml-prototypes-3"
GRID = 9_600  # steps of a fractional coordinate: 1/3, 1/8 and 1/24 lie on it, and 10 A / GRID is 1e-3 A
LENGTH, ANGLE, LOG = 9_000, 300, 100  # steps per e-fold (from e^-2), per degree, per e-fold of volume
WEIGHT = 20  # steps per e-fold of evidence, from e^-2
STRAIN, SHIFT = 1_000, 960  # of departures from the mean: steps per e-fold of the cell, per cell vector
DTYPES = {
    "hall": "<u2", "cell": "<u2", "volume": "i1", "orbits": "u1", "colours": "u1", "tuples": "<u2",
    "site": "<u2", "colour": "u1", "multiplicity": "u1", "letter": "u1", "twin": "u1", "elements": "u1",
    "weight": "u1", "strain": "i1", "shift": "i1",
}  # fmt: skip
SHAPES = {"cell": (0, 6), "site": (0, 3), "strain": (0, 6), "shift": (0, 3)}
TWIN = Closeness(length=0.02, angle=1.0, shift=0.05)


@dataclass(frozen=True)
class Geometry:
    """One prototype: (6,) cell at unit volume per atom, (o, 3) sites, (o,) colours and multiplicities."""

    hall: int
    cell: Array
    sites: Array
    colours: Array
    multiplicity: Array
    letters: str


@dataclass(frozen=True)
class Tables:
    """p prototypes with o orbits, c colours and t element tuples in all, stored flat.

    hall, cell (6 codes), orbits, colours, tuples: (p, ...). site (3 codes), colour, multiplicity, letter:
    (o, ...). twin: (c,) colours of a prototype with equal twin may be swapped without changing it.
    elements: atomic numbers, colours[p] of them for every tuple. weight: (t,) code of the log of the evidence
    that crystals with these elements are, one each as a rule. volume: (t,) code of the mean log of their
    volume over what the volume model predicts. strain (6 codes), shift (3 codes for each orbit): how far cell
    and sites of these crystals are from the prototype's mean, for prototypes of several tuples.
    """

    hall: Array
    cell: Array
    volume: Array
    orbits: Array
    colours: Array
    tuples: Array
    site: Array
    colour: Array
    multiplicity: Array
    letter: Array
    twin: Array
    elements: Array
    weight: Array
    strain: Array
    shift: Array

    def __len__(self) -> int:
        return len(self.hall)

    @cached_property
    def _ends(self) -> dict[str, Array]:
        several = np.where(self.tuples > 1, self.tuples, 0).astype(np.int64)
        sizes = {
            "orbit": self.orbits, "colour": self.colours, "tuple": self.tuples,
            "element": self.tuples.astype(np.int64) * self.colours,
            "strain": several, "shift": several * self.orbits,
        }  # fmt: skip
        return {name: np.concatenate([[0], np.cumsum(size, dtype=np.int64)]) for name, size in sizes.items()}

    def _part(self, kind: str, p: int) -> slice:
        return slice(int(self._ends[kind][p]), int(self._ends[kind][p + 1]))

    def geometry(self, p: int, weights: Array | None = None) -> Geometry:
        """The mean over all tuples, or with weights (t,) that sum to 1, over these."""
        part, hall = self._part("orbit", p), int(self.hall[p])
        code = self.cell[p].astype(np.float64)
        cell = np.concatenate([np.exp(code[:3] / LENGTH - 2), code[3:] / ANGLE])
        sites = self.site[part].astype(np.float64) / GRID
        if weights is not None and len(weights) > 1:
            cell = cell * np.exp(weights @ self.strain[self._part("strain", p)] / STRAIN)
            shift = self.shift[self._part("shift", p)].reshape(len(weights), *sites.shape)
            sites = (sites + np.tensordot(weights, shift, 1) / SHIFT) % 1.0
        sites = np.stack([snap(hall, site) for site in sites])
        return Geometry(
            hall, symmetric_cell(space_group(hall)[0], cell), sites, self.colour[part].astype(np.int64),
            self.multiplicity[part].astype(np.int64), self.letter[part].tobytes().decode(),
        )  # fmt: skip

    def counts(self, p: int) -> Counts:
        """Atoms of each colour in the primitive cell, ascending."""
        part = self._part("orbit", p)
        return tuple(np.bincount(self.colour[part], self.multiplicity[part]).astype(int).tolist())

    def colours_of(self, p: int) -> Array:
        """(o,) colour of every orbit."""
        return self.colour[self._part("orbit", p)].astype(np.int64)

    def multiplicity_of(self, p: int) -> Array:
        """(o,) atoms of every orbit in the primitive cell."""
        return self.multiplicity[self._part("orbit", p)].astype(np.int64)

    def twins(self, p: int) -> Array:
        return self.twin[self._part("colour", p)]

    def element_tuples(self, p: int) -> tuple[Array, Array]:
        """(t, c) atomic numbers and (t,) weights."""
        values = self.elements[self._part("element", p)]
        weight = np.exp(self.weight[self._part("tuple", p)].astype(np.float64) / WEIGHT - 2)
        return values.reshape(-1, int(self.colours[p])).astype(np.int64), weight

    @cached_property
    def groups(self) -> dict[Counts, Array]:
        """Prototypes by the atoms of each colour."""
        out: dict[Counts, list[int]] = {}
        for p in range(len(self)):
            out.setdefault(self.counts(p), []).append(p)
        return {key: np.array(value) for key, value in out.items()}

    def excess(self, p: int) -> Array:
        """(t,) mean log of the volume over its prediction."""
        return self.volume[self._part("tuple", p)].astype(np.float64) / LOG

    @cached_property
    def _keys(self) -> dict[tuple[int, int], list[Counts]]:
        out: dict[tuple[int, int], list[Counts]] = {}
        for key in sorted(self.groups):
            out.setdefault((sum(key), len(key)), []).append(key)
        return out

    def sizes(self, atoms: int, colours: int) -> list[Counts]:
        """The groups with so many atoms and colours."""
        return self._keys.get((atoms, colours), [])

    @cached_property
    def _stacks(self) -> dict[Counts, tuple[Array, Array, Array]]:
        return {}

    def stacked(self, counts: Counts) -> tuple[Array, Array, Array]:
        """All tuples of a group: (m, c) elements, (m,) prototypes, (m,) weights."""
        if counts not in self._stacks:
            self._stacks[counts] = self._stack(counts)
        return self._stacks[counts]

    def _stack(self, counts: Counts) -> tuple[Array, Array, Array]:
        empty = np.zeros(0, np.int64)
        rows = [(p, *self.element_tuples(p)) for p in self.groups.get(counts, empty).tolist()]
        if not rows:
            return np.zeros((0, len(counts)), np.int64), empty, np.zeros(0)
        owner = np.repeat([p for p, _, _ in rows], [len(e) for _, e, _ in rows])
        return np.concatenate([e for _, e, _ in rows]), owner, np.concatenate([m for _, _, m in rows])

    def to_bytes(self, extra: Mapping[str, Array], card: Mapping[str, Any]) -> bytes:
        """Compressed safetensors; `extra` tensors and the JSON `card` travel along."""
        tensors = {f"table.{f.name}": _planes(getattr(self, f.name)) for f in fields(self)}
        metadata = {"format": FORMAT, "card": json.dumps(dict(card), sort_keys=True)}
        return lzma.compress(save({**tensors, **extra}, metadata), preset=9 | lzma.PRESET_EXTREME)

    @staticmethod
    def from_bytes(data: bytes, name: str | Path) -> tuple[Tables, dict[str, Array], dict[str, Any]]:
        try:
            raw = lzma.decompress(data)
            header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
            tensors = load(raw)
            if header["format"] != FORMAT:
                raise KeyError(header["format"])
            tables = Tables(
                **{f.name: _whole(tensors.pop(f"table.{f.name}"), DTYPES[f.name]) for f in fields(Tables)}
            )
            return tables, tensors, json.loads(header["card"])
        except (lzma.LZMAError, SafetensorError, KeyError, ValueError, UnicodeDecodeError) as error:
            raise FileReadError(
                f"{name} is no prototype atlas ({error!r}); make one with PrototypeAtlas.save"
            ) from error


def _planes(values: Array) -> Array:
    """Tables of bytes, columns first and 16-bit numbers as two planes: they compress a third better so."""
    parts = np.ascontiguousarray(values).view(np.uint8).reshape(*values.shape, values.dtype.itemsize)
    return np.ascontiguousarray(parts.T)


def _whole(planes: Array, dtype: str) -> Array:
    return np.ascontiguousarray(planes.T).view(dtype)[..., 0]


def tables_of(
    prototypes: Sequence[Prototype], surplus: Sequence[Mapping[Elements, float]] | None = None
) -> Tables:
    """The averages of clusters, encoded. surplus: for each, elements -> mean log of volume over model."""
    rows: dict[str, list[Any]] = {f.name: [] for f in fields(Tables)}
    for position, prototype in enumerate(prototypes):
        cell, sites = prototype.mean()
        crystal = prototype.leader.crystal
        code = np.concatenate([(np.log(cell[:3]) + 2) * LENGTH, cell[3:] * ANGLE])
        seen: Counter[Elements] = Counter()
        for member in prototype.members:
            seen[member.elements] += member.weight  # type: ignore[assignment]  # counts of crystals, weighted
        rows["hall"].append([crystal.hall])
        rows["cell"].append(np.clip(np.rint(code), 0, 65535)[None])
        rows["orbits"].append([len(sites)])
        rows["colours"].append([len(prototype.leader.elements)])
        rows["tuples"].append([len(seen)])
        rows["site"].append(np.rint(sites * GRID) % GRID)
        rows["colour"].append(prototype.leader.colours)
        rows["multiplicity"].append(crystal.multiplicity)
        rows["letter"].append(np.frombuffer(crystal.letters.encode(), np.uint8))
        rows["twin"].append(twins(prototype))
        rows["elements"] += [np.array(elements) for elements in sorted(seen)]
        excess = surplus[position] if surplus else {}
        codes = [np.rint(LOG * excess.get(elements, 0.0)) for elements in sorted(seen)]
        rows["volume"].append(np.clip(codes, -127, 127))
        logs = np.log([seen[elements] for elements in sorted(seen)])
        rows["weight"].append(np.clip(np.rint((logs + 2) * WEIGHT), 0, 255))
        if len(seen) > 1:
            departures = prototype.departures()
            for elements in sorted(seen):
                strain, shift = departures[elements]
                rows["strain"].append(np.clip(np.rint(strain * STRAIN), -127, 127)[None])
                rows["shift"].append(np.clip(np.rint(shift * SHIFT), -127, 127))
    return Tables(**{
        name: np.concatenate([np.zeros(SHAPES.get(name, (0,))), *parts]).astype(DTYPES[name])
        for name, parts in rows.items()
    })  # fmt: skip


def twins(prototype: Prototype) -> Array:
    """(c,) the lowest colour that each colour may be swapped with, itself if none."""
    leader = prototype.leader
    out = np.arange(len(leader.elements))
    for colouring in regroupings(leader.signature):
        moved = [k for k, image in enumerate(colouring) if image != k]
        if len(moved) == 2 and place(leader, leader, colouring, TWIN) is not None:
            out[moved[1]] = min(out[moved[1]], out[moved[0]])
    return out
