"""Samples on disk, one JSON line each: a run killed at any moment goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crystalml.benchmarks.report import write_json
from crystalml.errors import InputError
from crystalml.models.model import CrystalModel


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
    def path(self) -> Path:
        return self.folder / "samples.jsonl"

    def open(self, settings: dict[str, Any]) -> dict[tuple[str, int], Sample]:
        """The samples already drawn with these very settings, by (id, shot)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        note = self.folder / "settings.json"
        if note.exists():
            before = json.loads(note.read_text())
            for key in sorted(set(before) | set(settings)):
                if before.get(key) != settings.get(key):
                    raise InputError(
                        f"{self.folder} holds samples drawn with {key} = {before.get(key)!r}, not "
                        f"{settings.get(key)!r}; choose another output folder, or remove that one"
                    )
        else:
            write_json(note, settings)
        return {(sample.id, sample.shot): sample for sample in self._read()}

    def append(self, samples: Iterable[Sample]) -> None:
        lines = [json.dumps(asdict(sample), separators=(",", ":")) + "\n" for sample in samples]
        with self.path.open("a") as file:
            file.writelines(lines)

    def _read(self) -> list[Sample]:
        if not self.path.exists():
            return []
        text = self.path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):  # the last write was cut off; that sample is drawn again
            with self.path.open("r+b") as file:
                file.truncate(whole)
        return [Sample(**json.loads(line)) for line in text[:whole].splitlines()]


def fingerprint(model: CrystalModel) -> str:
    """A digest of the weights, wherever they came from."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
