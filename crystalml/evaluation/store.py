"""Results by crystal, kept in a folder as they come: a stopped evaluation goes on, the next reuses them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from crystalml.parallel import process_map
from crystalml.progress import ProgressBar

Item = TypeVar("Item")


class Store:
    """One JSON-lines file of [digest, value] pairs for each kind of result; in memory without a folder.

    The kind says everything that a value depends on besides the crystal, weights and settings included.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._known: dict[str, dict[str, Any]] = {}

    def known(self, kind: str) -> dict[str, Any]:
        """digest -> value of what is there already."""
        if kind not in self._known:
            self._known[kind] = self._read(kind)
        return self._known[kind]

    def fill(
        self,
        kind: str,
        items: Sequence[Item | None],
        digests: Sequence[str],
        compute: Callable[[list[Item]], Iterable[Any]],
        label: str = "",
        progress: bool = False,
    ) -> list[Any]:
        """The value of each item, None for None; `compute` yields those of the missing ones, in order.

        Each value is on disk before the next is asked for.
        """
        known = self.known(kind)
        missing: dict[str, Item] = {
            key: item
            for key, item in zip(digests, items, strict=True)
            if item is not None and key not in known
        }
        if missing:
            with ProgressBar(progress, label or kind) as bar:
                bar.add(len(missing))
                values = compute(list(missing.values()))
                for key, value in zip(missing, values, strict=True):
                    self._append(kind, key, value)
                    known[key] = value
                    bar.advance(1)
        return [None if item is None else known[key] for key, item in zip(digests, items, strict=True)]

    def each(
        self,
        kind: str,
        items: Sequence[Item | None],
        digests: Sequence[str],
        work: Callable[[Item], Any],
        processes: int = 1,
        label: str = "",
        progress: bool = False,
    ) -> list[Any]:
        """`fill` with work(item) for each, over processes."""

        def compute(chosen: list[Item]) -> Iterator[Any]:
            return process_map(work, chosen, processes)

        return self.fill(kind, items, digests, compute, label, progress)

    def _path(self, kind: str) -> Path:
        assert self.folder is not None
        short = hashlib.blake2b(kind.encode(), digest_size=4).hexdigest()
        return self.folder / f"{kind.split(' ')[0]}-{short}.jsonl"

    def _append(self, kind: str, key: str, value: Any) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._path(kind).open("a") as file:
            file.write(json.dumps([key, value], separators=(",", ":")) + "\n")

    def _read(self, kind: str) -> dict[str, Any]:
        if self.folder is None or not (path := self._path(kind)).exists():
            return {}
        known = {}
        text = path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):  # the last write was cut off; that crystal is done again
            with path.open("r+b") as file:
                file.truncate(whole)
        for line in text[:whole].splitlines():
            key, value = json.loads(line)
            known[key] = value
        return known
