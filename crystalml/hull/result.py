"""What an exploration found: the best sample of each formula among the known phases, as files."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pymatgen.analysis.phase_diagram import PhaseDiagram
from pymatgen.core import Structure

from crystalml.hull.picture import draw
from crystalml.journal import write_json
from crystalml.replacing import replacing
from crystalml.write import write_structures

COLUMNS = (
    "formula", "formation_energy_per_atom", "energy_above_hull", "known", "known_energy_per_atom",
    "on_new_hull", "spacegroup", "atoms", "samples", "converged", "energy_uncertainty", "error",
)  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """The best sample of one formula. Energies in eV/atom: formation energy, and above the known hull.

    known_energy_per_atom: the table's own energy of this formula, None without one. on_new_hull: whether it
    is a corner of the hull of known phases and samples together. energy_uncertainty: of the potential,
    eV/atom, where it is calibrated. error: why there is no structure.
    """

    formula: str
    structure: Structure | None = None
    formation_energy_per_atom: float = math.nan
    energy_above_hull: float = math.nan
    known_energy_per_atom: float | None = None
    on_new_hull: bool = False
    spacegroup: str = ""
    samples: int = 0
    converged: bool = False
    energy_uncertainty: float | None = None
    error: str = ""

    def row(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in COLUMNS if hasattr(self, name)}
        values |= {
            "known": self.known_energy_per_atom is not None,
            "atoms": None if self.structure is None else len(self.structure),
        }
        return {name: _json(values[name]) for name in COLUMNS}


@dataclass(frozen=True)
class Exploration:
    """phases: one a formula, the most stable first. diagram: of the known phases and the samples together."""

    system: tuple[str, ...]
    phases: list[Phase]
    known: dict[str, float]
    diagram: PhaseDiagram
    settings: dict[str, Any] = field(default_factory=dict)

    def shift(self) -> tuple[float, float, int] | None:
        """Mean and mean absolute difference (eV/atom) of samples' energies from the table's, and how many.

        The formulas that both know: how far the potential can be trusted in this system, where the right
        structure was found. None if there are none.
        """
        pairs = [
            phase.formation_energy_per_atom - phase.known_energy_per_atom
            for phase in self.phases
            if phase.structure is not None and phase.known_energy_per_atom is not None
        ]
        if not pairs:
            return None
        return sum(pairs) / len(pairs), sum(map(abs, pairs)) / len(pairs), len(pairs)

    def save(self, folder: str | Path) -> list[Path]:
        """Write phases.csv and .json, structures.cif.zip and .extxyz, hull.png (of 2 or 3 elements)."""
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        rows = [phase.row() for phase in self.phases]
        paths = [out / name for name in ("phases.csv", "phases.json")]
        with replacing(paths[0]) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        shift = self.shift()
        write_json(
            paths[1],
            {
                "system": "-".join(self.system),
                "settings": self.settings,
                "shift_from_known": shift,
                "phases": rows,
                "known": self.known,
            },
        )
        found = [phase.structure for phase in self.phases if phase.structure is not None]
        if found:
            for name in ("structures.cif.zip", "structures.extxyz"):
                write_structures(found, out / name)
                paths.append(out / name)
        if len(self.system) in (2, 3):
            paths.append(out / "hull.png")
            self.draw(paths[-1])
        return paths

    def draw(self, path: str | Path) -> None:
        """The phase diagram as a picture, see `crystalml.hull.picture`."""
        shift = self.shift()
        title = f"{'-'.join(self.system)}, energies by {self.settings.get('energy_model', 'the potential')}"
        if shift is not None:
            title += f"; samples of {shift[2]} known formulas: {shift[0]:+.3f} eV/atom on average"
        draw(self.diagram, path, title)


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
