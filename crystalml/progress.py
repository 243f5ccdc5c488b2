"""The progress bar of everything that takes long, on stderr so that output can be piped."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any


class ProgressBar(AbstractContextManager["ProgressBar"]):
    """A rich bar whose total may grow while it runs; with show=False it does nothing."""

    def __init__(self, show: bool, label: str) -> None:
        self._show = show
        self._total = 0
        self._bar: Any = nullcontext()
        if show:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
            console = Console(stderr=True)
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
            self._task = self._bar.add_task(label, total=0)

    def __enter__(self) -> ProgressBar:
        self._bar.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._bar.__exit__(*exc)

    def add(self, total: int) -> None:
        """Announce `total` more units of work."""
        self._total += total
        if self._show:
            self._bar.update(self._task, total=self._total)

    def advance(self, by: int) -> None:
        """Report `by` units done."""
        if self._show:
            self._bar.advance(self._task, by)
