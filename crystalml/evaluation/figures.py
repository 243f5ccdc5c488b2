"""The pictures of a report, as text to put into a page: distributions as SVG, crystals as PNG."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from io import BytesIO, StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from crystalml.evaluation.facts import SYMPREC, crystal_system

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_DRAWN = 60  # atoms of a cell in the gallery
SAMPLES, REFERENCE, INK = "#2563a8", "#b8b3a8", "#33302b"
SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
Table = dict[str, list[Any]]


def histogram(
    values: Sequence[Any], reference: Sequence[Any], label: str, marks: Sequence[tuple[float, str]] = ()
) -> str | None:
    """Densities of one quantity; the outer half percent on each side is gathered in the last bins."""
    mine, theirs = _finite(values), _finite(reference)
    both = np.concatenate([mine, theirs])
    if len(mine) < 2 or np.ptp(both) == 0:
        return None
    low, high = np.quantile(both, [0.005, 0.995])
    edges = np.linspace(low, high if high > low else low + 1, 41)
    figure, axes = _axes()
    if len(theirs):
        heights, _ = np.histogram(theirs.clip(edges[0], edges[-1]), edges, density=True)
        axes.stairs(heights, edges, fill=True, color=REFERENCE, label="reference")
    heights, _ = np.histogram(mine.clip(edges[0], edges[-1]), edges, density=True)
    axes.stairs(heights, edges, color=SAMPLES, linewidth=1.8, label="samples")
    for place, name in marks:
        if edges[0] <= place <= edges[-1]:
            axes.axvline(place, color=INK, linewidth=0.8, linestyle=":")
            axes.text(place, axes.get_ylim()[1] * 0.96, f" {name}", fontsize=8, color=INK, va="top")
    axes.set_xlabel(label)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    if len(theirs):
        axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def bars(values: Sequence[Any], reference: Sequence[Any], order: Sequence[Any], label: str) -> str | None:
    """Shares of each kind in the samples and the reference, side by side."""
    mine, theirs = ([v for v in part if v is not None] for part in (values, reference))
    if not mine:
        return None
    figure, axes = _axes()
    places = np.arange(len(order))
    sets = [(mine, SAMPLES, "samples"), (theirs, REFERENCE, "reference")]
    sets = [item for item in sets if item[0]]
    width = 0.8 / len(sets)
    for k, (part, color, name) in enumerate(sets):
        counts = Counter(part)
        heights = [100 * counts[kind] / len(part) for kind in order]
        axes.bar(places + (k - (len(sets) - 1) / 2) * width, heights, width, color=color, label=name)
    axes.set_xticks(places, [str(kind) for kind in order])
    if max(len(str(kind)) for kind in order) > 4:
        axes.tick_params(axis="x", labelrotation=35)
    axes.set_xlabel(label)
    axes.set_ylabel("%")
    if len(sets) > 1:
        axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def charts(table: Table, reference: Table, stable: float | None) -> list[tuple[str, str]]:
    """(caption, SVG) of every distribution that the tables hold."""
    marks = [] if stable is None else [(stable, "stable")]
    continuous = (
        ("Density", "density", "density (g/cm³)", ()),
        ("Volume", "volume_per_atom", "volume (Å³/atom)", ()),
        ("Energy", "energy_per_atom", "energy (eV/atom)", ()),
        ("Energy above hull", "energy_above_hull", "energy above hull (eV/atom)", marks),
        ("Distance to the matched target", "rms", "rms / (V/N)^(1/3)", ()),
    )
    drawn: list[tuple[str, str | None]] = [
        (caption, histogram(table.get(name, []), reference.get(name, []), label, lines))
        for caption, name, label, lines in continuous
    ]
    systems = [
        [None if number is None else crystal_system(number) for number in rows.get("spacegroup", [])]
        for rows in (table, reference)
    ]
    drawn.append(("Crystal systems", bars(systems[0], systems[1], SYSTEMS, "")))
    counts = [rows.get("elements", []) for rows in (table, reference)]
    most = max((n for part in counts for n in part if n is not None), default=1)
    drawn.append(("Elements a crystal", bars(counts[0], counts[1], range(1, most + 1), "elements")))
    return [(caption, picture) for caption, picture in drawn if picture is not None]


def crystal(structure: Structure) -> str:
    """A crystal seen from a little above the a axis, drawn by ASE, as a PNG data address."""
    from ase.visualize.plot import plot_atoms
    from pymatgen.io.ase import AseAtomsAdaptor

    figure, axes = _axes(2.1, 2.1)
    atoms = AseAtomsAdaptor.get_atoms(_conventional(structure), msonable=False)
    plot_atoms(atoms, axes, radii=0.45, rotation="-80x,20y,0z")
    axes.set_axis_off()
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight", transparent=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _conventional(structure: Structure) -> Structure:
    """The cell that people know, unless it is too full to be seen."""
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    try:
        cell = SpacegroupAnalyzer(structure, symprec=SYMPREC).get_conventional_standard_structure()
    except Exception:  # spglib gives up on degenerate cells with several exception types
        return structure
    return cell if len(cell) <= MAX_DRAWN else structure


def _axes(width: float = 4.2, height: float = 2.5) -> tuple[Figure, Axes]:
    """Without pyplot: no window system, no state shared with the caller's figures."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
    return figure, axes


def _svg(figure: Figure) -> str:
    from matplotlib import rc_context

    buffer = StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "crystalml", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _finite(values: Sequence[Any]) -> NDArray[np.float64]:
    numbers = np.array([np.nan if value is None else value for value in values], np.float64)
    return numbers[np.isfinite(numbers)]
