"""What is asked of a sampler: which atoms are in each cell, and how many formula units a cell should hold."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch


def template(
    cells: Sequence[Sequence[int]], device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> CrystalBatch:
    """A batch with the given species (atomic numbers, one list a cell) and geometry still to be drawn.

    Lattices are unit cubes and coordinates zero: a sampler replaces both by its prior.
    """
    counts = torch.tensor([len(cell) for cell in cells], device=device)
    numbers = torch.tensor([z for cell in cells for z in cell], device=device)
    frac = torch.zeros(numbers.shape[0], 3, device=device, dtype=dtype)
    lattice = torch.eye(3, device=device, dtype=dtype).repeat(len(cells), 1, 1)
    return CrystalBatch(numbers, frac, lattice, counts)


def formula_key(numbers: Iterable[int]) -> tuple[str, int]:
    """The anonymous reduced formula of a cell ("1-3-5" for CsV3Sb5 or Cs2V6Sb10) and its Z (1, 2)."""
    amounts = sorted(Counter(numbers).values())
    z = math.gcd(*amounts)
    return "-".join(str(amount // z) for amount in amounts), z


@dataclass(frozen=True)
class FormulaUnits:
    """The most common Z among training crystals, by anonymous reduced formula and by its atom count.

    A guess for a composition comes from crystals of the same anonymous formula, else from those with as
    many atoms in the reduced formula, else it is 1. Ties go to the smaller Z.
    """

    by_formula: Mapping[str, int] = field(default_factory=dict)
    by_atoms: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def count(numbers: Tensor, num_atoms: Tensor, at_least: int = 5) -> FormulaUnits:
        """Statistics of a data set (its flat species and atom counts).

        Formulas seen fewer than `at_least` times are left to the fallback.
        """
        formulas: dict[str, Counter[int]] = defaultdict(Counter)
        atoms: dict[str, Counter[int]] = defaultdict(Counter)
        for cell in numbers.cpu().split(num_atoms.tolist()):
            key, z = formula_key(cell.tolist())
            formulas[key][z] += 1
            atoms[str(len(cell) // z)][z] += 1

        def modes(table: Mapping[str, Counter[int]], least: int) -> dict[str, int]:
            kept = {key: seen for key, seen in sorted(table.items()) if seen.total() >= least}
            return {key: min(seen, key=lambda z: (-seen[z], z)) for key, seen in kept.items()}

        return FormulaUnits(modes(formulas, at_least), modes(atoms, 1))

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> FormulaUnits:
        return FormulaUnits(data.get("by_formula", {}), data.get("by_atoms", {}))

    def to_dict(self) -> dict[str, dict[str, int]]:
        return {"by_formula": dict(self.by_formula), "by_atoms": dict(self.by_atoms)}

    def guess(self, numbers: Sequence[int]) -> int:
        """Z for one reduced formula unit given as a list of atomic numbers."""
        key, z = formula_key(numbers)
        return self.by_formula.get(key, self.by_atoms.get(str(len(numbers) // z), 1))
