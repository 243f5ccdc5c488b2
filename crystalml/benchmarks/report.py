"""What every benchmark says about itself: machine, date, versions, command; one table, one JSON file."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from crystalml.journal import write_json as write_json

_PACKAGES = ("crystalml-dao", "torch", "torch-geometric", "pymatgen")


def environment(device: torch.device) -> dict[str, Any]:
    """Machine kind (never its name), threads, versions, date and command line."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "cpu": _cpu(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "device": device.type,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], notes: str = "") -> None:
    """Print one table; the first column is text, the others are numbers."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, caption=notes or None, title_justify="left", caption_justify="left")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*[str(cell) for cell in row])
    Console().print(table)


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
