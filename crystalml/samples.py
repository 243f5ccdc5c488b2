"""What a generator answers: a list of structures that also knows how to be a table, a file or a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pymatgen.core import Structure

from crystalml.convert import space_group_of
from crystalml.errors import InputError
from crystalml.write import SYMPREC, write_structures

if TYPE_CHECKING:
    import pandas as pd


class Samples(list[Structure]):
    """Structures in the order of their rank or of their draws; a plain list in every other respect."""

    def to_dataframe(self, symprec: float = SYMPREC) -> pd.DataFrame:
        """One row a structure: formula, atoms, space group (spglib at symprec, Angstrom), cell, density
        (g/cm^3), then its provenance, then the structure itself.
        """
        import pandas as pd

        rows = []
        for structure in self:
            lattice = structure.lattice
            symbol, number = space_group_of(structure, symprec) or ("P1", 1)
            row = {
                "formula": structure.reduced_formula,
                "atoms": len(structure),
                "space_group_found": number,
                "symbol_found": symbol,
                "volume_per_atom": structure.volume / len(structure),
                "density": float(structure.density),
                **dict(zip(("a", "b", "c"), lattice.abc, strict=True)),
                **dict(zip(("alpha", "beta", "gamma"), lattice.angles, strict=True)),
            }
            rows.append({**row, **structure.properties, "structure": structure})
        return pd.DataFrame(rows)

    def write(self, path: str | os.PathLike[str], symprec: float = SYMPREC) -> list[str]:
        """To .extxyz, .cif, .cif.zip or .jsonl; CIFs carry their space group. See `write_structures`."""
        return write_structures(self, path, symprec)


def plot_path(
    trajectory: Sequence[Structure], path: str | os.PathLike[str] | None = None, frames: int = 6
) -> Path | None:
    """The way from noise to a crystal: snapshots along c, and below how far atoms and cell still had to go.

    trajectory: of one sample, as `StructureGenerator.sample(return_trajectory=True)` gives it. path: a file
    such as denoising.png; None shows a window. Distances are root mean squares over the atoms to where they
    end, in fractions of the cell; volumes are A^3 per atom.
    """
    import matplotlib.pyplot as plt

    if len(trajectory) < 2:
        raise InputError("a path needs two structures or more; ask for it with return_trajectory=True")
    chosen = np.unique(np.linspace(0, len(trajectory) - 1, min(frames, len(trajectory))).round().astype(int))
    figure = plt.figure(figsize=(2.2 * len(chosen), 4.6), constrained_layout=True)
    grid = figure.add_gridspec(2, len(chosen), height_ratios=[1, 0.8])
    colours = {z: f"C{i % 10}" for i, z in enumerate(dict.fromkeys(trajectory[-1].atomic_numbers))}
    for column, k in enumerate(chosen.tolist()):
        axes = figure.add_subplot(grid[0, column])
        _snapshot(axes, trajectory[k], colours)
        axes.set_title(f"{k + 1} of {len(trajectory)}", fontsize=9)
    end = trajectory[-1]
    gaps = [s.frac_coords - end.frac_coords for s in trajectory]
    gaps = [gap - np.rint(gap) for gap in gaps]
    gaps = [gap - gap.mean(0) for gap in gaps]
    distance = [float(np.sqrt((gap**2).sum(1).mean())) for gap in gaps]
    left = figure.add_subplot(grid[1, :])
    left.plot(distance, color="C0")
    left.set_xlabel("frame")
    left.set_ylabel("distance to the end", color="C0")
    right = left.twinx()
    right.plot([s.volume / len(s) for s in trajectory], color="C1")
    right.set_ylabel("volume (Å$^3$/atom)", color="C1")
    figure.suptitle(end.formula, fontsize=11)
    if path is None:
        plt.show()
        return None
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=150)
    plt.close(figure)
    return target


def _snapshot(axes: object, structure: Structure, colours: dict[int, str]) -> None:
    """The cell and its atoms seen along c."""
    a, b, c = structure.lattice.matrix
    z = c / np.linalg.norm(c)
    x = a - (a @ z) * z
    x /= np.linalg.norm(x)
    plane = np.stack([x, np.cross(z, x)], 1)
    corners = np.array([0 * a, a, a + b, b, 0 * a]) @ plane
    axes.plot(*corners.T, color="0.6", lw=1)  # type: ignore[attr-defined]
    points = structure.cart_coords @ plane
    shades = [colours.get(n, "k") for n in structure.atomic_numbers]
    axes.scatter(*points.T, c=shades, s=40, edgecolors="k", linewidths=0.4)  # type: ignore[attr-defined]
    axes.set_aspect("equal")  # type: ignore[attr-defined]
    axes.axis("off")  # type: ignore[attr-defined]
