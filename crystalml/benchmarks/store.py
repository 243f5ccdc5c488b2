"""The samples of a benchmark on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crystalml.journal import Journal
from crystalml.weights.registry import fingerprint as fingerprint


@dataclass(frozen=True)
class Sample:
    """Draw `shot` for the target `id`: fractional coordinates (3n), cell (9, Angstrom), seconds it took."""

    id: str
    shot: int
    seconds: float
    lattice: list[float]
    frac: list[float]


@dataclass(frozen=True)
class SampleStore:
    """`settings.json` says how the samples of `samples.jsonl` were drawn; other settings are refused."""

    folder: Path

    @property
    def _journal(self) -> Journal:
        return Journal(self.folder, "samples.jsonl")

    def open(self, settings: dict[str, Any]) -> dict[tuple[str, int], Sample]:
        """The samples already drawn with these very settings, by (id, shot)."""
        samples = [Sample(**row) for row in self._journal.open(settings)]
        return {(sample.id, sample.shot): sample for sample in samples}

    def append(self, samples: Iterable[Sample]) -> None:
        self._journal.append(asdict(sample) for sample in samples)
