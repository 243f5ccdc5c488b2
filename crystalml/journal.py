"""Results on disk, one JSON line each: a run killed at any moment goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crystalml.errors import InputError
from crystalml.replacing import replacing


@dataclass(frozen=True)
class Journal:
    """`settings.json` says how the rows of `name` came about; rows of other settings are refused."""

    folder: Path
    name: str

    @property
    def path(self) -> Path:
        return self.folder / self.name

    def open(self, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rows written so far with these very settings, which are noted if there are none yet.

        Raises InputError that names the setting where the folder's are others, and where there can be no
        such folder or its settings.json is somebody else's.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"{self.folder} is a file or lies in one, so it cannot be a folder of results; choose another"
            ) from error
        note = self.folder / "settings.json"
        if note.exists():
            before = _settings(note)
            for key in sorted(set(before) | set(settings)):
                if before.get(key) != settings.get(key):
                    raise InputError(
                        f"{self.folder} holds results with {key} = {before.get(key)!r}, not "
                        f"{settings.get(key)!r}; choose another output folder, or remove that one"
                    )
        else:
            write_json(note, dict(settings))
        return self._read()

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        lines = [json.dumps(row, separators=(",", ":")) + "\n" for row in rows]
        with self.path.open("a") as file:
            file.writelines(lines)

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        text = self.path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):  # the last write was cut off; what it was about is done again
            with self.path.open("r+b") as file:
                file.truncate(whole)
        return [json.loads(line) for line in text[:whole].splitlines()]


def _settings(note: Path) -> dict[str, Any]:
    try:
        found = json.loads(note.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{note} holds no settings of crystalml's; choose another output folder")
    return found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write atomically: a killed run leaves the old file or none."""
    text = json.dumps(content, indent=1) + "\n"
    with replacing(path) as file:
        file.write_text(text)
