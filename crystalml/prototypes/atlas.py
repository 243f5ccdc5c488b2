"""The prototype atlas: known structure types, what was seen on their sites, and what they predict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from crystalml.composition import parse_composition
from crystalml.convert import to_batch
from crystalml.datasets.arrays import Arrays, fractions
from crystalml.elements import atomic_number, symbol
from crystalml.errors import FileReadError, InputError
from crystalml.prototypes.align import Closeness, regroupings
from crystalml.prototypes.cluster import Clusters, Prototype
from crystalml.prototypes.derive import Found, by_prototype, merged, split
from crystalml.prototypes.describe import Description, describe_all
from crystalml.prototypes.elements import electronegativity
from crystalml.prototypes.instantiate import build
from crystalml.prototypes.similarity import Similarity, learn
from crystalml.prototypes.symmetry import space_group
from crystalml.prototypes.tables import Elements, Tables, tables_of
from crystalml.prototypes.volume import VolumeModel, fit_volume
from crystalml.replacing import replacing

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Composition, Structure

Array = NDArray[Any]
Kind = Literal["direct", "merged", "split"]

SHARPER = 3.0  # of likeness for geometry and volume, over that for telling prototypes apart
COST = {"merged": 2.0, "split": 3.0}  # log odds against a step from what was seen, from validation crystals


@dataclass(frozen=True)
class Candidate:
    """A prototype with the target's elements on its sites.

    species: atomic number of each orbit. evidence: log of the kernel summed over the crystals seen, less what
    the kind costs. score: the log of its share among all candidates of the composition. template: the
    elements of the closest crystal seen, colour by colour. volume: predicted, cubic Angstrom per atom.
    kind: "direct", "merged" (one element on two colours) or "split" (two elements on one colour).
    """

    prototype: int
    species: tuple[int, ...]
    score: float
    evidence: float
    template: tuple[int, ...]
    volume: float
    kind: Kind = "direct"


@dataclass(frozen=True)
class PrototypeAtlas:
    """Symmetry prototypes: group, coloured orbits, mean cell and free coordinates, elements seen on them.

    Make one with `from_structures`, read one with `load`, or take the shipped one with `default`.
    """

    tables: Tables
    similarity: Similarity
    volumes: VolumeModel
    card: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tables)

    @staticmethod
    def from_structures(
        structures: Structure | Atoms | Iterable[Structure | Atoms],
        close: Closeness | None = None,
        similarity: Similarity | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> PrototypeAtlas:
        """Prototypes of any ordered bulk crystals; those that are close to each other become one.

        similarity: how elements are compared; None learns it where there are crystals enough to learn from,
        and else goes by the elements' properties.
        """
        single = hasattr(structures, "lattice") or hasattr(structures, "cell")  # both are iterable over sites
        items: list[Any] = [structures] if single else list(structures)
        if not items:
            return PrototypeAtlas.from_descriptions([], close, similarity, card)
        batch = to_batch(items, dtype=torch.float64)
        data = Arrays(
            batch.numbers.numpy().astype(np.int8), batch.frac.numpy(), batch.lattice.numpy(),
            batch.num_atoms.numpy(), ids=[str(i) for i in range(len(batch))],
        )  # fmt: skip
        found = (item for part in describe_all(data) for _, item in part)
        return PrototypeAtlas.from_descriptions(found, close, similarity, card)

    @staticmethod
    def from_descriptions(
        crystals: Iterable[Description],
        close: Closeness | None = None,
        similarity: Similarity | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> PrototypeAtlas:
        """As `from_structures`, from crystals that are symmetrised already."""
        clusters = Clusters(close)
        for crystal in crystals:
            clusters.add(crystal)
        return PrototypeAtlas.from_prototypes(clusters.prototypes(), similarity, card)

    @staticmethod
    def from_prototypes(
        prototypes: Sequence[Prototype],
        similarity: Similarity | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> PrototypeAtlas:
        volumes, surplus = _volumes(prototypes)
        tables = tables_of(prototypes, surplus)
        return PrototypeAtlas(tables, similarity or learn(tables), volumes, dict(card or {}))

    def save(self, path: str | Path) -> None:
        """Write one compressed safetensors file, atomically."""
        data = self.tables.to_bytes({**self.similarity.tensors(), **self.volumes.tensors()}, self.card)
        with replacing(path) as file:
            file.write_bytes(data)

    @staticmethod
    def load(path: str | Path) -> PrototypeAtlas:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise FileReadError(f"cannot read the prototype atlas {path}: {error}") from error
        tables, tensors, card = Tables.from_bytes(data, path)
        return PrototypeAtlas(
            tables, Similarity.from_tensors(tensors), VolumeModel.from_tensors(tensors), card
        )

    @staticmethod
    @cache
    def default() -> PrototypeAtlas:
        """The atlas shipped with the package, made from Materials Project crystals (CC BY 4.0) and others."""
        return PrototypeAtlas.load(DEFAULT)

    def label(self, prototype: int) -> str:
        """Its name: amounts, group and Wyckoff letters by colour, such as "1:1:3_221_a_b_c"."""
        geometry = self.tables.geometry(prototype)
        counts = self.tables.counts(prototype)
        owned = list(zip(geometry.letters, geometry.colours, strict=True))
        letters = ["".join(sorted(letter for letter, c in owned if c == k)) for k in range(len(counts))]
        amounts = ":".join(str(count) for count in counts)
        return "_".join([amounts, str(space_group(geometry.hall)[0]), *letters])

    def candidates(
        self,
        composition: str | Composition | Mapping[Any, float],
        num_atoms: int | None = None,
        same_formula: bool = True,
        derived: bool = True,
    ) -> list[Candidate]:
        """Everything the atlas has for the cell's content, likeliest first; empty if it has nothing.

        composition: the atoms of the primitive cell, or with num_atoms a formula that is multiplied to it.
        same_formula: whether crystals of this very composition count as evidence; False asks what the atlas
        says of a compound it has not seen. derived: also prototypes with a colour too many or too few.
        """
        base, counts = self.cell_content(composition, num_atoms)
        found: list[tuple[Kind, Found]] = [
            ("direct", item) for item in self._direct(base, counts, same_formula)
        ]
        if derived:
            numbers = base.tolist()
            found += [("merged", item) for item in merged(self.tables, self.similarity, numbers, counts)]
            found += [("split", item) for item in split(self.tables, self.similarity, numbers, counts)]
        if not found:
            return []
        log_volume = self.volumes.log_volume(base, counts)
        out = []
        for kind, (evidence, p, species, template) in found:
            excess = 0.0
            if kind == "direct":  # log of the volume over the model's, as in crystals of like elements
                excess = float(self.likeness(p, species, same_formula) @ self.tables.excess(p))
            volume = exp(log_volume + excess)
            out.append(Candidate(p, species, 0.0, evidence - COST.get(kind, 0.0), template, volume, kind))
        total = logsumexp([item.evidence for item in out])
        out.sort(key=lambda item: (-item.evidence, item.prototype, item.species))
        return [replace(item, score=item.evidence - total) for item in out]

    def _direct(self, base: Array, counts: tuple[int, ...], same_formula: bool) -> list[Found]:
        elements, owner, weight = self.tables.stacked(counts)
        if not same_formula:
            seen = [(elements == base[list(order)]).all(1) for order in regroupings(counts)]
            keep = ~np.any(seen, axis=0)
            elements, owner, weight = elements[keep], owner[keep], weight[keep]
        found: list[Found] = []
        for order in regroupings(counts) if len(owner) else ():
            target = base[list(order)]
            score = self.similarity.scores(target, elements, weight)
            for total, p, template in by_prototype(score, elements, owner):
                if _canonical(target, self.tables.twins(p)):
                    found.append((total, p, tuple(target[self.tables.colours_of(p)].tolist()), template))
        return found

    def instantiate(self, prototype: int, elements: Sequence[int | str], volume: float) -> Structure:
        """The primitive, Niggli-reduced crystal with `elements` on the colours; volume in A^3 per atom."""
        if not 0 <= prototype < len(self):
            raise InputError(f"there is no prototype {prototype}; this atlas has 0 to {len(self) - 1}")
        numbers = [atomic_number(e) if isinstance(e, str) else int(e) for e in elements]
        wanted = len(self.tables.counts(prototype))
        if len(numbers) != wanted or not volume > 0:
            raise InputError(
                f"{self.label(prototype)} needs {wanted} elements and a positive volume, "
                f"not {[symbol(z) for z in numbers]} and {volume}"
            )
        species = [numbers[k] for k in self.tables.colours_of(prototype)]
        return build(self.tables.geometry(prototype), species, volume)

    def realise(self, candidate: Candidate, same_formula: bool = True) -> Structure:
        """The primitive, Niggli-reduced crystal of a candidate: its prototype as elements like these make it.

        same_formula: see `candidates`.
        """
        p, species = candidate.prototype, candidate.species
        weights = self.likeness(p, species, same_formula)
        found = build(self.tables.geometry(p, weights), species, candidate.volume)
        if len(found) == sum(self.tables.counts(p)):
            return found
        return build(self.tables.geometry(p), species, candidate.volume)  # sites had met on a symmetric one

    def likeness(self, prototype: int, species: Sequence[int], same_formula: bool = True) -> Array:
        """(t,) shares of a prototype's tuples, by their likeness to `species`, the elements of its orbits.

        same_formula=False leaves out the tuples of these very elements, unless there are no others.
        """
        elements, evidence = self.tables.element_tuples(prototype)
        pairs = sorted(set(zip(self.tables.colours_of(prototype).tolist(), species, strict=True)))
        colour, z = zip(*pairs, strict=True)
        distance = self.similarity.distances[z, elements[:, colour]].sum(1)
        score = self.similarity.log_kernel(distance, len(z), evidence)
        if not same_formula:
            others = np.array([set(row) != set(z) for row in elements.tolist()])
            score = np.where(others | ~others.any(), score, -np.inf)
        weight = np.exp(SHARPER * (score - score.max()))
        out: Array = weight / weight.sum()
        return out

    def cell_content(
        self, composition: str | Composition | Mapping[Any, float], num_atoms: int | None = None
    ) -> tuple[Array, tuple[int, ...]]:
        """Atomic numbers and amounts, by amount, then electronegativity."""
        unit = parse_composition(composition)
        amounts = {atomic_number(str(name)): round(n) for name, n in unit.get_el_amt_dict().items()}
        size = sum(amounts.values())
        factor, rest = divmod(size if num_atoms is None else num_atoms, size)
        if rest or factor < 1:
            raise InputError(f"num_atoms={num_atoms} is no multiple of the {size} atoms of {composition!r}")
        order = sorted(amounts, key=lambda z: (amounts[z], electronegativity(z), z))
        return np.array(order), tuple(amounts[z] * factor for z in order)


def logsumexp(values: Sequence[float]) -> float:
    array = np.array(values)
    return float(array.max() + np.log(np.exp(array - array.max()).sum()))


def _canonical(target: Array, twins: Array) -> bool:
    """Whether colours that may be swapped without change stand in the one order that counts."""
    last: dict[int, tuple[float, int]] = {}
    for z, twin in zip(target.tolist(), twins.tolist(), strict=True):
        rank = (electronegativity(z), z)
        if twin in last and rank < last[twin]:
            return False
        last[twin] = rank
    return True


def _volumes(prototypes: Sequence[Prototype]) -> tuple[VolumeModel, list[dict[Elements, float]]]:
    """The volume model of all members, and the mean log by which those of the same elements exceed it."""
    amounts = [_amounts(prototype) for prototype in prototypes]
    numbers = np.array([z for p in prototypes for member in p.members for z in member.elements], np.int8)
    if not len(numbers):
        return VolumeModel(np.zeros((119, 119)), float("nan")), []
    sizes, atoms, volume = [], [], []
    for prototype, counts in zip(prototypes, amounts, strict=True):
        for member in prototype.members:
            sizes.append(int(counts.sum()))
            atoms.append(counts)
            volume.append(member.volume)
    z = np.repeat(numbers, np.concatenate(atoms))
    data = Arrays(z, np.zeros((len(z), 3)), np.zeros((len(sizes), 3, 3)), np.array(sizes))
    model = fit_volume(fractions(data), np.array(volume))
    surplus = []
    for prototype, counts in zip(prototypes, amounts, strict=True):
        gaps: dict[Elements, list[float]] = {}
        for member in prototype.members:
            gap = float(np.log(member.volume)) - model.log_volume(member.elements, counts)
            gaps.setdefault(member.elements, []).append(gap)
        surplus.append({elements: float(np.mean(values)) for elements, values in gaps.items()})
    return model, surplus


def _amounts(prototype: Prototype) -> Array:
    crystal = prototype.leader.crystal
    return np.bincount(prototype.leader.colours, crystal.multiplicity).astype(int)


DEFAULT = Path(__file__).parent / "crysdb.safetensors.xz"
