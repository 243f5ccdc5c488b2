"""Ordered work over processes, and a time limit for calls that may never return."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def process_map(
    work: Callable[[Item], Result], items: Sequence[Item], processes: int = 1, chunk: int = 8
) -> Iterator[Result]:
    """work(item) for every item, in order; in this process if `processes` is 1.

    Workers are spawned, never forked: a fork of a process whose torch already holds threads may hang.
    If a worker dies (out of memory, say), the items left are done here, with a warning.
    """
    done = 0
    if processes > 1 and len(items) > 1:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(processes, len(items)), mp_context=context) as pool:
            try:
                for result in pool.map(work, items, chunksize=max(1, min(chunk, len(items) // processes))):
                    done += 1
                    yield result
            except BrokenProcessPool:
                warnings.warn(
                    f"a worker process died; the {len(items) - done} items left are done in this process",
                    RuntimeWarning,
                    stacklevel=2,
                )
    for item in items[done:]:
        yield work(item)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise TimeoutError in the body after `seconds`; no limit outside a main thread or without SIGALRM."""
    if seconds is None or threading.current_thread() is not threading.main_thread() or not _HAS_ALARM:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


_HAS_ALARM = hasattr(signal, "SIGALRM")
