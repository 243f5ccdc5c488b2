"""Packed crystals: one small safetensors file, memory-mapped, no pickles, no parsing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.errors import FileReadError, InputError

_CORE = ("numbers", "frac", "lattice", "num_atoms")


@dataclass(frozen=True)
class PackedDataset:
    """numbers (n,) int8, frac (n, 3) float32, lattice (b, 3, 3) float32, num_atoms (b,) int16, labels (b,).

    Labels are float32 with NaN where unknown.
    """

    numbers: Tensor
    frac: Tensor
    lattice: Tensor
    num_atoms: Tensor
    labels: Mapping[str, Tensor]

    @staticmethod
    def from_arrays(
        numbers: np.ndarray,
        frac: np.ndarray,
        lattice: np.ndarray,
        num_atoms: np.ndarray,
        labels: Mapping[str, np.ndarray] | None = None,
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
        )

    def __len__(self) -> int:
        return len(self.num_atoms)

    def save(self, path: str | Path) -> None:
        """Write atomically: a killed run leaves the old file or none."""
        tensors = {name: getattr(self, name).contiguous() for name in _CORE}
        tensors |= {f"label.{name}": value.contiguous() for name, value in self.labels.items()}
        temporary = Path(f"{path}.partial")
        save_file(tensors, temporary, metadata={"format": "crystalml-packed-1"})
        os.replace(temporary, path)

    @staticmethod
    def load(path: str | Path) -> PackedDataset:
        try:
            tensors = load_file(path)
            core = {name: tensors[name] for name in _CORE}
        except (OSError, SafetensorError, KeyError) as error:
            raise FileReadError(
                f"{path} is no packed dataset ({error}); make one with `crystalml pack`"
            ) from error
        labels = {k.removeprefix("label."): v for k, v in tensors.items() if k.startswith("label.")}
        return PackedDataset(**core, labels=labels)

    @staticmethod
    def cat(parts: Sequence[PackedDataset]) -> PackedDataset:
        """Join; a label missing from a part becomes NaN there."""
        names = sorted({name for part in parts for name in part.labels})

        def label(part: PackedDataset, name: str) -> Tensor:
            return part.labels.get(name, torch.full((len(part),), float("nan")))

        return PackedDataset(
            **{name: torch.cat([getattr(part, name) for part in parts]) for name in _CORE},
            labels={name: torch.cat([label(part, name) for part in parts]) for name in names},
        )

    def __getitem__(self, ids: Tensor | Sequence[int] | slice) -> CrystalBatch:
        """Chosen crystals as a batch."""
        whole = CrystalBatch(self.numbers, self.frac, self.lattice, self.num_atoms.long(), self.labels)
        part = whole[ids]
        return part.replace(numbers=part.numbers.long())

    def select(self, ids: Tensor) -> PackedDataset:
        """Chosen crystals as a smaller dataset."""
        part = self[ids]
        return PackedDataset(
            part.numbers.to(torch.int8), part.frac, part.lattice, part.num_atoms.to(torch.int16), part.labels
        )


@dataclass(frozen=True)
class SizeBatches:
    """Batches of crystals of similar size, so that dense padding wastes little.

    Crystals are shuffled, cut into windows, sorted by size within a window and cut into batches of at most
    `budget` padded pairs (count x max_atoms^2) and `max_crystals`; then the batches are shuffled. All of it
    is a function of (seed, epoch), so a run resumes at any batch.
    """

    num_atoms: Tensor
    budget: int = 60_000
    max_crystals: int = 1024
    window: int = 16_384
    seed: int = 0

    def epoch(self, epoch: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.num_atoms), generator=generator)
        batches = [b for part in order.split(self.window) for b in self._cut(part)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]

    def _cut(self, ids: Tensor) -> Iterator[Tensor]:
        sizes, position = self.num_atoms[ids].long().sort(stable=True)
        ids, start, sizes_list = ids[position], 0, sizes.tolist()
        for end in range(1, len(sizes_list) + 1):
            full = end - start == self.max_crystals
            last = end == len(sizes_list)
            if last or full or (end - start + 1) * sizes_list[end] ** 2 > self.budget:
                yield ids[start:end]
                start = end
