"""Results by crystal, kept in a folder as they come: a stopped evaluation goes on, the next reuses them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from crystalml.journal import Journal
from crystalml.parallel import process_map
from crystalml.progress import ProgressBar

Item = TypeVar("Item")


class Store:
    """A journal of (digest, value) for each kind of result; in memory without a folder.

    The kind says everything that a value depends on besides the crystal, weights and settings included.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._known: dict[str, dict[str, Any]] = {}

    def known(self, kind: str) -> dict[str, Any]:
        """digest -> value of what is there already."""
        if kind not in self._known:
            journal = self._journal(kind)
            rows = journal.open({"kind": kind}) if journal else []
            self._known[kind] = {row["key"]: row["value"] for row in rows}
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
            journal = self._journal(kind)
            with ProgressBar(progress, label or kind) as bar:
                bar.add(len(missing))
                values = compute(list(missing.values()))
                for key, value in zip(missing, values, strict=True):
                    if journal is not None:
                        journal.append([{"key": key, "value": value}])
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

    def _journal(self, kind: str) -> Journal | None:
        if self.folder is None:
            return None
        short = hashlib.blake2b(kind.encode(), digest_size=4).hexdigest()
        return Journal(self.folder / f"{kind.split(' ')[0]}-{short}", "values.jsonl")
