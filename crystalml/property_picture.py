"""Predictive distributions of a property as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalml.errors import InputError
from crystalml.pictures import check_suffix
from crystalml.replacing import replacing

LEVELS = (0.05, 0.15, 0.25, 0.35, 0.45, 0.5, 0.55, 0.65, 0.75, 0.85, 0.95)
MAX_DRAWN = 60
_INK, _FAN = "#33302b", "#2563a8"


def draw(
    path: str | Path,
    names: Sequence[str],
    quantiles: NDArray[Any],
    label: str = "",
    truth: NDArray[Any] | None = None,
) -> None:
    """One row a crystal, by its median: nested intervals of 10 to 90 %, the median, and the truth if known.

    quantiles: (b, 11) at `LEVELS`, as `PropertyPredictor.predict(quantiles=LEVELS)` gives them. truth: (b,).
    The file's ending decides its kind (.png, .svg, .pdf). Raises InputError
    (shapes, endings, more than 60 crystals).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    q = np.asarray(quantiles, np.float64)
    if q.shape != (len(names), len(LEVELS)):
        raise InputError(f"{len(names)} crystals need ({len(names)}, {len(LEVELS)}) quantiles, not {q.shape}")
    check_picture(path, len(names))
    middle = len(LEVELS) // 2
    order = np.argsort(q[:, middle], kind="stable")
    rows = np.arange(len(names))
    figure = Figure(figsize=(6.5, 1.0 + 0.22 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for k in range(middle):
        low, high = q[order, k], q[order, len(LEVELS) - 1 - k]
        axes.barh(rows, high - low, left=low, height=0.8, color=_FAN, alpha=0.22, linewidth=0)
    axes.plot(q[order, middle], rows, "|", color=_INK, markersize=9, label="median")
    if truth is not None:
        axes.plot(np.asarray(truth)[order], rows, "o", color="#c4511f", markersize=4, label="truth")
    axes.set_yticks(rows, [names[k] for k in order], fontsize=7)
    axes.set_xlabel(label)
    axes.set_title("intervals of 10, 30, 50, 70 and 90 %", fontsize=9, loc="left")
    axes.legend(frameon=False, fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    with replacing(path) as file:
        figure.savefig(file, dpi=150)


def check_picture(path: str | Path, crystals: int) -> None:
    """Raises InputError where `draw` could not write this file or has no room for so many crystals."""
    check_suffix(path)
    if not 1 <= crystals <= MAX_DRAWN:
        raise InputError(f"{crystals} crystals do not fit into a picture; give 1 to {MAX_DRAWN}")
