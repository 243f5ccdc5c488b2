"""Pictures of properties and features: parity, learning curves, maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crystalml.benchmarks.energy import ANIONS
from crystalml.elements import atomic_number
from crystalml.errors import InputError, UnsupportedError
from crystalml.replacing import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[Any]

SUFFIXES = (".png", ".svg", ".pdf")
COLORS = {  # of Okabe and Ito, told apart by all eyes
    "oxide": "#D55E00",
    "halide": "#009E73",
    "chalcogenide": "#E69F00",
    "pnictide": "#0072B2",
    "metals only": "#6b6b6b",
    "other": "#CC79A7",
}
_STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}


def parity(
    path: Path,
    truth: Array,
    predicted: Array,
    std: Array | None = None,
    name: str = "",
    unit: str = "",
) -> float:
    """Draw predicted (b,) against true (b,) values, and the errors; returns the mean absolute error."""
    truth, predicted = np.asarray(truth, float), np.asarray(predicted, float)
    known = np.isfinite(truth) & np.isfinite(predicted)
    if not known.any():
        raise InputError("no row has both a true and a predicted value")
    truth, predicted = truth[known], predicted[known]
    error, label = predicted - truth, f" ({unit})" if unit else ""
    figure, (left, right) = _panels(1, 2, (7.2, 3.4))
    bars = None if std is None else np.asarray(std, float)[known]
    left.errorbar(truth, predicted, bars, fmt="o", ms=3, lw=0.6, alpha=0.5, color="#0072B2")
    ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
    left.plot(ends, ends, color="#6b6b6b", lw=0.8, zorder=0)
    left.set(xlabel=f"true{label}", ylabel=f"predicted{label}", title=name)
    right.hist(error, bins=min(60, max(10, len(error) // 10)), color="#0072B2", alpha=0.7)
    mae = float(np.abs(error).mean())
    right.axvline(0, color="#6b6b6b", lw=0.8)
    right.set(xlabel=f"predicted - true{label}", ylabel="crystals", title=f"MAE {mae:.3g} {unit}".rstrip())
    _save(figure, path)
    return mae


Point = tuple[int, float, float, float]  # labels, error, and the ends of its interval


def learning_curves(path: Path, result: Mapping[str, Any]) -> None:
    """Error against labels for every task and row that has more than one share, of matbench or crysdiff."""
    curves: dict[str, dict[str, list[Point]]] = {}
    for task, row, point in _points(result):
        curves.setdefault(task, {}).setdefault(row, []).append(point)
    for task, rows in list(curves.items()):
        curves[task] = {row: sorted(points) for row, points in rows.items() if len(points) > 1}
        if not curves[task]:
            del curves[task]
    if not curves:
        raise InputError(
            "the result holds no learning curve: run the benchmark with --shares (--fractions) 5,20,100"
        )
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    units = {r["property"]: r["unit"] for r in result.get("records", ())}
    units |= {task: found["unit"] for task, found in result.get("tasks", {}).items()}
    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    figure, axes = _panels(lines, columns, (3.4 * columns, 2.8 * lines))
    palette = list(COLORS.values())
    names = list(dict.fromkeys(row for rows in curves.values() for row in rows))  # a color each, everywhere
    for ax, (task, rows) in zip(axes, curves.items(), strict=False):
        for row, points in rows.items():
            k = names.index(row)
            labels, mae, low, high = np.array(points).T
            labels = labels * 1.04**k  # apart, so that bars can be told apart
            ax.errorbar(
                labels, mae, (mae - low, high - mae), marker="o", ms=3, lw=1, label=row, color=palette[k % 6]
            )
        ax.set(xscale="log", yscale="log", xlabel="labels", title=task, ylabel=f"MAE {units[task]}".rstrip())
        counts = sorted({point[0] for points in rows.values() for point in points})
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticks(counts, [f"{count:,}" for count in counts], rotation=45)
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.legend(fontsize=7, loc="lower left")
    for ax in axes[len(curves) :]:
        ax.set_axis_off()
    _save(figure, path)


def _points(result: Mapping[str, Any]) -> Iterator[tuple[str, str, Point]]:
    """Task, row and point of everything that a result of `benchmark matbench` or `crysdiff` holds."""
    for task, found in result.get("tasks", {}).items():
        for key, cell in found["rows"].items():
            yield task, key.partition("@")[0], (cell["train"], cell["mae"], *cell["interval"])
    for record in result.get("records", ()):
        mae = record["mae"]
        yield record["property"], record["row"], (record["train"], mae["mean"], *mae["interval"])


def crystal_map(
    path: Path,
    features: Array,
    formulas: Sequence[str],
    kinds: Array | None = None,
    method: str = "pca",
    seed: int = 0,
) -> Array:
    """Draw crystals in the plane of their features (b, d), colored by `kinds` or chemistry; gives (b, 2).

    pca: the two widest directions of the standardised features. tsne, umap: neighbours stay neighbours,
    distances mean little. An .html path makes an interactive picture with plotly.
    """
    points = plane(np.asarray(features, float), method, seed)
    groups = np.array([chemistry(text) for text in formulas]) if kinds is None else np.asarray(kinds)
    if path.suffix == ".html":
        _interactive(path, points, formulas, groups)
        return points
    figure, (ax,) = _panels(1, 1, (6.4, 5.2))
    names = [name for name in COLORS if name in groups] if kinds is None else sorted(set(groups.tolist()))
    if kinds is not None and len(names) > 12:  # a number, not a class
        shown = ax.scatter(*points.T, c=groups.astype(float), s=4, lw=0, cmap="viridis")
        figure.colorbar(shown)
    else:
        for k, name in enumerate(names):
            mine, color = points[groups == name], COLORS.get(str(name), f"C{k}")
            ax.scatter(*mine.T, s=4, lw=0, alpha=0.6, color=color, label=f"{name} ({len(mine)})")
        ax.legend(markerscale=3, fontsize=8)
    ax.set(xticks=[], yticks=[], xlabel=f"{method} 1", ylabel=f"{method} 2")
    _save(figure, path)
    return points


def plane(features: Array, method: str = "pca", seed: int = 0) -> Array:
    """(b, d) -> (b, 2)."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    if len(features) < 5:
        raise InputError(f"{len(features)} crystals make no map; give at least 5")
    z = StandardScaler().fit_transform(features)
    if method == "pca":
        return np.asarray(PCA(2, random_state=seed).fit_transform(z))
    if method == "tsne":
        size = min(30.0, (len(z) - 1) / 3)
        return np.asarray(TSNE(2, perplexity=size, init="pca", random_state=seed).fit_transform(z))
    if method != "umap":
        raise InputError(f"unknown method {method!r}; choose pca, tsne or umap")
    try:
        from umap import UMAP
    except ImportError as error:
        raise UnsupportedError("umap needs umap-learn: pip install umap-learn") from error
    return np.asarray(UMAP(n_components=2, random_state=seed).fit_transform(z))


def chemistry(formula: str) -> str:
    """The first class of `COLORS` that fits a formula: what its anion is, or that it has metals only."""
    from pymatgen.core import Composition, Element

    symbols = [element.symbol for element in Composition(formula).elements]
    numbers = {atomic_number(name) for name in symbols}
    for name, anions in ANIONS.items():
        if numbers & set(anions):
            return name
    return "metals only" if all(Element(name).is_metal for name in symbols) else "other"


def _panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Any]]:
    import matplotlib
    from matplotlib.figure import Figure as New

    with matplotlib.rc_context(_STYLE):
        figure = New(figsize=size, layout="constrained")
        return figure, list(np.ravel(figure.subplots(rows, columns)))


def check_suffix(path: str | Path) -> None:
    """Raises InputError for a file that is no picture by its ending."""
    if Path(path).suffix not in SUFFIXES:
        raise InputError(f"{path}: a picture is one of {', '.join(SUFFIXES)}")


def _save(figure: Figure, path: Path) -> None:
    check_suffix(path)
    with replacing(path) as file:
        figure.savefig(file, dpi=160)


def _interactive(path: Path, points: Array, formulas: Sequence[str], groups: Array) -> None:
    import plotly.express as px

    figure = px.scatter(
        x=points[:, 0],
        y=points[:, 1],
        color=groups.astype(str),
        hover_name=list(formulas),
        color_discrete_map=COLORS,
        labels={"x": "", "y": "", "color": ""},
    )
    figure.update_traces(marker={"size": 5, "opacity": 0.7})
    with replacing(path) as file:
        figure.write_html(file, include_plotlyjs="cdn")
