"""Is a Frechet distance a measure: its rise with noise, and the crystals it takes (GemsDiff, Figs 3, 4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pymatgen.core import Structure

from crystalml.benchmarks.report import environment, show
from crystalml.benchmarks.targets import choose, read_test, structures
from crystalml.convert import to_batch, to_structures
from crystalml.device import pick_device
from crystalml.embedders import load_embedder
from crystalml.errors import CrystalMLError, InputError
from crystalml.journal import write_json
from crystalml.metrics.distribution import frechet
from crystalml.metrics.embedding import Embedder
from crystalml.noise.product import CrystalNoise
from crystalml.progress import ProgressBar

LEVELS = (0, 1, 2, 5, 10, 20, 35, 50, 75, 100)  # of GemsDiff's 100 steps
SIZES = (50, 100, 200, 500, 1000, 2000, 4000)
Features = NDArray[np.float64]


def run(
    test: str | Path,
    embedder: Any = None,
    *,
    benchmark: str | None = None,
    n: int | None = None,
    noisy: int = 2000,
    seeds: Sequence[int] = (0, 1, 2),
    levels: Sequence[int] = LEVELS,
    sizes: Sequence[int] = SIZES,
    out: str | Path = "benchmark-frechet",
    device: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Distances of one half of a set from the other, as it is and with noise; and of random parts by size.

    Noise: half of `noisy` crystals at level t of GemsDiff's diffusion, lattice and coordinates, against the
    other half. Sizes: two disjoint random parts of each size of the n crystals; what cannot be had twice is
    left out. Each over the seeds (mean, standard deviation). Writes `out`/result.json and `out`/frechet.png
    and returns the former.
    """
    where = pick_device(device)
    chosen = load_embedder(embedder, str(where))
    data = choose(read_test(test, benchmark), n, 0)
    crystals = structures(data)
    if len(crystals) < 8:
        raise InputError(f"{len(crystals)} crystals are too few to be halved; give at least 8")
    noise = CrystalNoise.gemsdiff()
    if not levels or min(levels) < 0 or max(levels) > noise.num_steps:
        raise InputError(f"levels lie in 0..{noise.num_steps}, not {list(levels)}")
    some = min(noisy, len(crystals))
    with ProgressBar(progress, "embedding") as bar:
        bar.add(len(crystals) + len(seeds) * sum(level > 0 for level in levels) * (some // 2))
        clean = _embed(chosen, crystals, bar)
        rising = [_rising(chosen, crystals[:some], clean, noise, levels, seed, bar) for seed in seeds]
    fits = [size for size in sizes if 2 <= size <= len(crystals) // 2]
    falling = [_falling(clean, fits, seed) for seed in seeds]
    result = {
        "benchmark": "frechet",
        "test": Path(test).name,
        "rows": benchmark or "all",
        "crystals": len(crystals),
        "embedder": chosen.name,
        "features": int(clean.shape[1]),
        "seeds": list(seeds),
        "half": some // 2,
        "by_level": _summary(levels, rising),
        "by_size": _summary(fits, falling),
        "environment": environment(where),
    }
    folder = Path(out)
    write_json(folder / "result.json", result)
    draw(result, folder / "frechet.png")
    _print(result)
    return result


def _rising(
    embedder: Embedder,
    crystals: list[Structure],
    clean: Features,
    noise: CrystalNoise,
    levels: Sequence[int],
    seed: int,
    bar: ProgressBar,
) -> list[float]:
    """The distance of one half, noised to each level, from the other half."""
    order = np.random.default_rng(seed).permutation(len(crystals))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    x = to_batch([crystals[i] for i in first], dtype=torch.float64)
    found = []
    for level in levels:
        if level == 0:
            found.append(frechet(clean[first], clean[second]))
            continue
        generator = torch.Generator().manual_seed(1000 * seed + level)
        noisy, _ = noise.perturb(x, torch.full((len(x),), level), generator)
        found.append(frechet(_embed(embedder, to_structures(noisy), bar), clean[second]))
    return found


def _falling(clean: Features, sizes: Sequence[int], seed: int) -> list[float]:
    """The distance of two disjoint random parts of each size."""
    order = np.random.default_rng(seed).permutation(len(clean))
    return [frechet(clean[order[:size]], clean[order[size : 2 * size]]) for size in sizes]


def _embed(embedder: Embedder, crystals: Sequence[Structure], bar: ProgressBar) -> Features:
    """(n, d), without the crystals that noise has made unreadable."""
    rows = []
    for start in range(0, len(crystals), 256):
        part = crystals[start : start + 256]
        try:
            rows.append(embedder(part))
        except CrystalMLError:
            able = [crystal for crystal in part if _readable(crystal)]
            rows.append(embedder(able))
        bar.advance(len(part))
    found = np.concatenate(rows)
    return found[np.isfinite(found).all(axis=1)]


def _readable(crystal: Structure) -> bool:
    try:
        to_batch(crystal)
    except CrystalMLError:
        return False
    return True


def _summary(places: Sequence[int], values: list[list[float]]) -> list[dict[str, float]]:
    table = np.array(values)
    return [
        {
            "at": place,
            "mean": float(column.mean()),
            "std": float(column.std(ddof=1)) if len(column) > 1 else 0.0,
        }
        for place, column in zip(places, table.T, strict=True)
    ]


def draw(result: dict[str, Any], path: str | Path) -> None:
    """Both curves side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    titles = (("by_level", "diffusion step t of 100", "linear"), ("by_size", "crystals in each part", "log"))
    for place, (key, label, scale) in enumerate(titles, start=1):
        axes = figure.add_subplot(1, 2, place)
        rows = result[key]
        if not rows:
            continue
        x, mean, std = (np.array([row[name] for row in rows]) for name in ("at", "mean", "std"))
        axes.errorbar(x, mean, std, marker="o", markersize=4, color="#2563a8", capsize=3)
        axes.set_xscale(scale)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel("Frechet distance")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.suptitle(f"{result['embedder']}, {result['crystals']} crystals of {result['test']}", fontsize=9)
    figure.savefig(path, dpi=150)


def _print(result: dict[str, Any]) -> None:
    for key, name in (("by_level", "step"), ("by_size", "crystals")):
        rows = [(row["at"], f"{row['mean']:.4f}", f"{row['std']:.4f}") for row in result[key]]
        title = f"Frechet distance by {name}, {result['embedder']} on {result['test']}"
        show(title, [name, "mean", "std"], rows, f"{len(result['seeds'])} seeds")
