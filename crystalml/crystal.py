"""The one data class of the house: a ragged batch of periodic crystals, and its tangent vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from crystalml.geometry.lattice import determinant

EV_PER_A3 = 160.21766208  # GPa in one eV/A^3
_NO_LABELS: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class CrystalBatch:
    """b crystals with n atoms in all, stored flat: atoms of one crystal are contiguous.

    numbers: (n,) atomic numbers. frac: (n, 3) fractional coordinates in [0, 1).
    lattice: (b, 3, 3), rows are the vectors a, b, c in Angstrom; X = F @ L.
    num_atoms: (b,). labels: name -> (b, ...) tensor, one row a crystal. site_labels: name -> (n, ...), one
    row an atom. The label "pbc", (b, 3) bool, marks the periodic directions where not all three are.
    """

    numbers: Tensor
    frac: Tensor
    lattice: Tensor
    num_atoms: Tensor
    labels: Mapping[str, Tensor] = field(default_factory=lambda: _NO_LABELS)
    site_labels: Mapping[str, Tensor] = field(default_factory=lambda: _NO_LABELS)

    def __len__(self) -> int:
        return self.num_atoms.shape[0]

    @property
    def device(self) -> torch.device:
        return self.frac.device

    @property
    def dtype(self) -> torch.dtype:
        return self.frac.dtype

    @property
    def index(self) -> Tensor:
        """(n,) the crystal each atom belongs to."""
        if len(self) == 1:
            return torch.zeros_like(self.numbers, dtype=torch.long)
        ids = torch.arange(len(self), device=self.device)
        return ids.repeat_interleave(self.num_atoms, output_size=self.numbers.shape[0])

    @property
    def offsets(self) -> Tensor:
        """(b,) position of each crystal's first atom."""
        return self.num_atoms.cumsum(0) - self.num_atoms

    @property
    def cart(self) -> Tensor:
        """(n, 3) Cartesian coordinates in Angstrom."""
        return torch.einsum("ni,nij->nj", self.frac, self.lattice[self.index])

    @property
    def volume(self) -> Tensor:
        """(b,) cell volumes in cubic Angstrom (always positive)."""
        return determinant(self.lattice).abs()

    @property
    def pbc(self) -> Tensor:
        """(b, 3) which lattice vectors repeat the crystal; all, unless a label says otherwise."""
        given = self.labels.get("pbc")
        return torch.ones_like(self.lattice[:, 0], dtype=torch.bool) if given is None else given

    def replace(self, **fields: object) -> CrystalBatch:
        return dataclasses.replace(self, **fields)  # type: ignore[arg-type]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> CrystalBatch:
        """Move every tensor; dtype applies to the floating-point ones."""

        def move(x: Tensor) -> Tensor:
            return x.to(device=device, dtype=dtype if x.is_floating_point() else None)

        labels, sites = (
            {name: move(value) for name, value in group.items()} for group in (self.labels, self.site_labels)
        )
        return CrystalBatch(
            move(self.numbers), move(self.frac), move(self.lattice), move(self.num_atoms), labels, sites
        )

    def __getitem__(self, which: int | slice | Sequence[int] | Tensor) -> CrystalBatch:
        """A batch of the chosen crystals, in the order given (an int gives a batch of one, [] of none)."""
        return self.take(chosen(torch.arange(len(self), device=self.device), which), self.offsets)

    def take(self, ids: Tensor, offsets: Tensor) -> CrystalBatch:
        """`self[ids]` of whole numbers (k,) where `self.offsets` are at hand: work grows with k alone."""
        counts = self.num_atoms[ids]
        start = (offsets[ids] - (counts.cumsum(0) - counts)).repeat_interleave(counts)
        atoms = start + torch.arange(start.shape[0], device=self.device)
        labels = {name: value[ids] for name, value in self.labels.items()}
        sites = {name: value[atoms] for name, value in self.site_labels.items()}
        return CrystalBatch(self.numbers[atoms], self.frac[atoms], self.lattice[ids], counts, labels, sites)

    def split(self) -> list[CrystalBatch]:
        """One batch of one per crystal."""
        counts = self.num_atoms.tolist()
        numbers, frac = self.numbers.split(counts), self.frac.split(counts)
        sites = {name: value.split(counts) for name, value in self.site_labels.items()}
        return [
            CrystalBatch(
                numbers[i],
                frac[i],
                self.lattice[i : i + 1],
                self.num_atoms[i : i + 1],
                {name: value[i : i + 1] for name, value in self.labels.items()},
                {name: value[i] for name, value in sites.items()},
            )
            for i in range(len(self))
        ]

    @staticmethod
    def cat(batches: Iterable[CrystalBatch]) -> CrystalBatch:
        """Join batches; only labels that all of them carry are kept, and "pbc" where one has it."""
        parts = list(batches)
        if not parts:
            raise ValueError("CrystalBatch.cat needs at least one batch")
        names = set.intersection(*(set(part.labels) for part in parts))
        sites = set.intersection(*(set(part.site_labels) for part in parts))
        labels = {name: torch.cat([part.labels[name] for part in parts]) for name in sorted(names)}
        if any("pbc" in part.labels for part in parts):
            labels["pbc"] = torch.cat([part.pbc for part in parts])
        return CrystalBatch(
            torch.cat([part.numbers for part in parts]),
            torch.cat([part.frac for part in parts]),
            torch.cat([part.lattice for part in parts]),
            torch.cat([part.num_atoms for part in parts]),
            labels,
            {name: torch.cat([part.site_labels[name] for part in parts]) for name in sorted(sites)},
        )

    def slots(self) -> Tensor:
        """(n,) index of each atom in the padded view (b * max_atoms rows)."""
        width = int(self.num_atoms.max())
        within = torch.arange(self.numbers.shape[0], device=self.device) - self.offsets[self.index]
        return self.index * width + within

    def pad(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """(n, ...) per-atom values -> (b, max_atoms, ...), padded with `fill`."""
        width = int(self.num_atoms.max())
        out = values.new_full((len(self) * width, *values.shape[1:]), fill)
        return out.index_copy(0, self.slots(), values).unflatten(0, (len(self), width))

    @property
    def mask(self) -> Tensor:
        """(b, max_atoms) True where the padded view holds an atom."""
        width = torch.arange(int(self.num_atoms.max()), device=self.device)
        return width < self.num_atoms[:, None]


def chosen(places: Tensor, which: int | slice | Sequence[int] | Tensor) -> Tensor:
    """places[which], (k,) also of an int and of an empty list, which torch takes for real numbers."""
    if isinstance(which, slice):
        return places[which]
    ids = torch.as_tensor(which, device=places.device)
    return places[ids.long() if ids.numel() == 0 else ids].reshape(-1)


@dataclass(frozen=True, slots=True)
class Tangent:
    """One vector per diffused field of a batch; None where the field is held fixed.

    lattice: (b, 3, 3). frac: (n, 3). numbers: (n, k).
    """

    lattice: Tensor | None = None
    frac: Tensor | None = None
    numbers: Tensor | None = None
