"""How this process asks the system for memory."""

from __future__ import annotations

import ctypes
import os
import sys

_KEPT = 2**30  # bytes: more than any tensor of usual batches
_OWN = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_memory() -> None:
    """Let up to 1 GiB of freed memory wait for the next tensor, in large pages; for Linux with glibc.

    A network on a CPU asks for the same blocks thousands of times. glibc maps each of more than 32 MiB
    anew and gives it back when it is freed, and the kernel clears it page by page. `crystalml` commands call
    this first. In a script, call it before the first tensor is made: PyTorch decides on large pages then.
    Where the environment sets glibc's allocator (GLIBC_TUNABLES, MALLOC_...), that stands.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch's: transparent huge pages from 2 MiB
    if sys.platform != "linux" or any(key in os.environ for key in _OWN):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
