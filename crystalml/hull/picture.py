"""Phase diagrams of two or three elements with matplotlib, where samples can be told from known phases."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pymatgen.analysis.phase_diagram import PDPlotter, PhaseDiagram

from crystalml.errors import UnsupportedError
from crystalml.metrics.stability import STABLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAMPLE = "sample"  # the attribute of an entry that marks it as drawn, not known
_INK, _KNOWN, _NEW = "#33302b", "#8d877b", "#c4511f"


def draw(diagram: PhaseDiagram, path: str | Path, title: str = "") -> None:
    """Known phases grey, samples in colour, hollow up to STABLE above the hull.

    Two elements: formation energy over composition; three: the Gibbs triangle. Coordinates and tie lines are
    those of pymatgen's PDPlotter. Raises UnsupportedError for other numbers of elements.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(diagram.elements)
    if count not in (2, 3):
        raise UnsupportedError(f"a diagram of {count} elements cannot be drawn in a plane; use 2 or 3")
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=9)
    _draw(axes, diagram)
    figure.savefig(path, dpi=150)


def _draw(axes: Axes, diagram: PhaseDiagram) -> None:
    lines, stable, unstable = PDPlotter(diagram, backend="matplotlib").pd_plot_data
    flat = len(diagram.elements) == 2
    for x, y in lines:
        axes.plot(x, y, color=_INK, linewidth=0.9, zorder=1)
    for entry, coords in unstable.items():
        if (above := diagram.get_e_above_hull(entry)) is not None and above <= STABLE:
            _mark(axes, coords, entry, hollow=True)
    for coords, entry in stable.items():
        _mark(axes, coords, entry, hollow=False)
        _name(axes, coords, entry.name, (0.5, 0.29) if len(diagram.elements) == 3 else (0.5, 0.0))
    for label, color in (("known phase", _KNOWN), ("sample", _NEW)):
        axes.scatter([], [], color=color, label=label)
    axes.scatter(
        [], [], facecolors="white", edgecolors=_INK, label=f"at most {STABLE:g} eV/atom above the hull"
    )
    axes.legend(frameon=False, fontsize=8, loc="best")
    if flat:
        axes.set_xlabel(f"fraction of {diagram.elements[1]}")
        axes.set_ylabel("formation energy (eV/atom)")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    else:
        axes.set_aspect("equal")
        axes.set_axis_off()


def _name(axes: Axes, coords: tuple[float, float], name: str, center: tuple[float, float]) -> None:
    """Away from the middle, so that names around it do not meet."""
    dx, dy = coords[0] - center[0], coords[1] - center[1]
    length = math.hypot(dx, dy) or 1.0
    axes.annotate(
        name,
        coords,
        xytext=(9 * dx / length, 9 * dy / length),
        textcoords="offset points",
        fontsize=7,
        color=_INK,
        ha="left" if dx > 0 else "right",
        va="bottom" if dy > 0 else "top",
    )


def _mark(axes: Axes, coords: tuple[float, float], entry: Any, hollow: bool) -> None:
    color = _NEW if getattr(entry, "attribute", None) else _KNOWN
    axes.scatter(
        *coords, s=36, zorder=2 if hollow else 3, facecolors="white" if hollow else color, edgecolors=color
    )
