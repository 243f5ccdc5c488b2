"""Freed memory is used again, without asking the system for it."""

import ctypes
import os
import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys
from crystalml.memory import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
import torch
before = 0
for turn in range(20):
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(12 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "THP_"))}
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS, how],
        capture_output=True, text=True, check=True, env={**clean, **environment},
    )  # fmt: skip
    return int(done.stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc's malloc"
)
def test_pages_are_kept_unless_the_environment_says_otherwise():
    pages = 10 * 48 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert _faults("keep", THP_MEM_ALLOC_ENABLE="0") < pages / 100
    assert _faults("leave") > pages / 2
    assert _faults("keep", THP_MEM_ALLOC_ENABLE="0", MALLOC_MMAP_THRESHOLD_="1048576") > pages / 2
