"""Packed crystals: one small safetensors file, memory-mapped, no pickles, no parsing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from crystalml.crystal import CrystalBatch, chosen
from crystalml.errors import FileReadError, InputError
from crystalml.replacing import replacing

_CORE = ("numbers", "frac", "lattice", "num_atoms")


@dataclass(frozen=True)
class PackedDataset:
    """numbers (n,) int8, frac (n, 3) float32, lattice (b, 3, 3) float32, num_atoms (b,) int16.

    labels: name -> (b, ...), such as energies (b,) and stresses (b, 3, 3); site_labels: name -> (n, ...),
    such as forces (n, 3). Both float32, or float16 in the file and in memory, with NaN where unknown; batches
    are float32.
    """

    numbers: Tensor
    frac: Tensor
    lattice: Tensor
    num_atoms: Tensor
    labels: Mapping[str, Tensor]
    site_labels: Mapping[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def from_arrays(
        numbers: np.ndarray,
        frac: np.ndarray,
        lattice: np.ndarray,
        num_atoms: np.ndarray,
        labels: Mapping[str, np.ndarray] | None = None,
        site_labels: Mapping[str, np.ndarray] | None = None,
    ) -> PackedDataset:
        b, n = len(num_atoms), int(np.sum(num_atoms))
        if len(numbers) != n or np.shape(frac) != (n, 3) or np.shape(lattice) != (b, 3, 3):
            raise InputError(
                f"num_atoms says {b} crystals with {n} atoms, but numbers has {len(numbers)}, "
                f"frac {np.shape(frac)}, lattice {np.shape(lattice)}"
            )
        return PackedDataset(
            torch.as_tensor(np.asarray(numbers).astype(np.int8)),
            torch.as_tensor(np.asarray(frac, np.float32)),
            torch.as_tensor(np.asarray(lattice, np.float32)),
            torch.as_tensor(np.asarray(num_atoms).astype(np.int16)),
            {k: torch.as_tensor(np.asarray(v, np.float32)) for k, v in (labels or {}).items()},
            {k: torch.as_tensor(np.asarray(v, np.float32)) for k, v in (site_labels or {}).items()},
        )

    def __len__(self) -> int:
        return len(self.num_atoms)

    def save(self, path: str | Path) -> None:
        """Write atomically: a killed run leaves the old file or none."""
        tensors = {name: getattr(self, name).contiguous() for name in _CORE}
        tensors |= {f"label.{name}": value.contiguous() for name, value in self.labels.items()}
        tensors |= {f"site.{name}": value.contiguous() for name, value in self.site_labels.items()}
        with replacing(path) as file:
            save_file(tensors, file, metadata={"format": "crystalml-packed-1"})

    @staticmethod
    def load(path: str | Path) -> PackedDataset:
        try:
            tensors = load_file(path)
            core = {name: tensors[name] for name in _CORE}
        except (OSError, SafetensorError, KeyError) as error:
            raise FileReadError(
                f"{path} is no packed dataset ({error}); make one with `crystalml pack`"
            ) from error
        labels, sites = (
            {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
            for start in ("label.", "site.")
        )
        return PackedDataset(**core, labels=labels, site_labels=sites)

    @staticmethod
    def cat(parts: Sequence[PackedDataset]) -> PackedDataset:
        """Join; a label missing from a part becomes NaN there."""

        def join(kind: str, sizes: list[int]) -> dict[str, Tensor]:
            tables: list[Mapping[str, Tensor]] = [getattr(part, kind) for part in parts]
            like = {name: value for table in tables for name, value in table.items()}
            out = {}
            for name in sorted(like):
                shape = like[name].shape[1:]
                out[name] = torch.cat(
                    [
                        table[name] if name in table else torch.full((size, *shape), float("nan"))
                        for table, size in zip(tables, sizes, strict=True)
                    ]
                )
            return out

        return PackedDataset(
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in _CORE},
            labels=join("labels", [len(part) for part in parts]),
            site_labels=join("site_labels", [len(part.numbers) for part in parts]),
        )

    def __getitem__(self, ids: Tensor | Sequence[int] | slice) -> CrystalBatch:
        """Chosen crystals as a batch."""
        part = self._rows(ids)
        labels, sites = (
            {name: value.float() for name, value in group.items()}
            for group in (part.labels, part.site_labels)
        )
        return part.replace(numbers=part.numbers.long(), labels=labels, site_labels=sites)

    def select(self, ids: Tensor) -> PackedDataset:
        """Chosen crystals as a smaller dataset."""
        part = self._rows(ids)
        count = part.num_atoms.to(torch.int16)
        return PackedDataset(part.numbers, part.frac, part.lattice, count, part.labels, part.site_labels)

    def up_to(self, max_atoms: int | None) -> PackedDataset:
        """Crystals with at most so many atoms; all of them for None."""
        return self if max_atoms is None else self.select((self.num_atoms <= max_atoms).nonzero()[:, 0])

    def half(self, *names: str) -> PackedDataset:
        """The named labels in float16, at half the size: 0.05 % of a force, beyond +-65504 infinite."""

        def narrow(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.half() if name in names else value for name, value in group.items()}

        return replace(self, labels=narrow(self.labels), site_labels=narrow(self.site_labels))

    def _rows(self, ids: Tensor | Sequence[int] | slice) -> CrystalBatch:
        """Chosen crystals as they are stored."""
        whole, places, offsets = self._whole
        return whole.take(chosen(places, ids), offsets)

    @cached_property
    def _whole(self) -> tuple[CrystalBatch, Tensor, Tensor]:
        """All crystals, (b,) their places and offsets: made once, as batches are small and the set is not."""
        counts = self.num_atoms.long()
        x = CrystalBatch(self.numbers, self.frac, self.lattice, counts, self.labels, self.site_labels)
        return x, torch.arange(len(x), device=counts.device), x.offsets


@dataclass(frozen=True)
class SizeBatches:
    """Batches of similar crystals, so that padding wastes little.

    Crystals are shuffled, cut into windows, sorted by size within a window and cut into batches of at most
    `budget` padded pairs (count x max_atoms^2) and `max_crystals`; then the batches are shuffled. All of it
    is a function of (seed, epoch), so a run resumes at any batch.
    neighbors: expected neighbours of an atom in each crystal. Where given, crystals are sorted by it and a
    batch holds sum(atoms) x max(neighbors) pairs: the cost of a model with a cutoff.
    kinds: any labels; crystals of different kinds never share a batch.
    """

    num_atoms: Tensor
    budget: int = 60_000
    max_crystals: int = 1024
    window: int = 16_384
    seed: int = 0
    neighbors: Tensor | None = None
    kinds: Tensor | None = None

    def epoch(self, epoch: int, together: int = 1) -> list[Tensor]:
        """The batches of an epoch. Every `together` in a row are of one kind, for as many processes, which
        then need not wait for each other; what is left over of a kind waits for the next epoch. A kind of
        fewer batches than that would wait for ever: they are repeated.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.num_atoms), generator=generator)
        kinds = torch.zeros(len(order)) if self.kinds is None else self.kinds
        rows: list[list[Tensor]] = []
        for kind in kinds.unique():
            parts = [part[kinds[part] == kind] for part in order.split(self.window)]
            batches = [b for part in parts if len(part) for b in self._cut(part)]
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator)]
            if len(batches) < together:
                batches = [batches[i % len(batches)] for i in range(together)]
            rows += [batches[i : i + together] for i in range(0, len(batches) - together + 1, together)]
        return [b for i in torch.randperm(len(rows), generator=generator) for b in rows[i]]

    def _cut(self, ids: Tensor) -> Iterator[Tensor]:
        sizes = self.num_atoms[ids].long()
        width, position = (sizes if self.neighbors is None else self.neighbors[ids]).sort(stable=True)
        ids, widths, rows = ids[position], width.tolist(), sizes[position].tolist()
        start, atoms = 0, 0
        for end in range(1, len(widths) + 1):
            atoms += rows[end - 1]
            full, last = end - start == self.max_crystals, end == len(widths)
            if last or full or self._pairs(end - start + 1, atoms + rows[end], widths[end]) > self.budget:
                yield ids[start:end]
                start, atoms = end, 0

    def _pairs(self, crystals: int, atoms: int, width: float) -> float:
        return crystals * width**2 if self.neighbors is None else atoms * width
