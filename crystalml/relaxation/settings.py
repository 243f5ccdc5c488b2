"""What a relaxation is asked for, whoever carries it out."""

from __future__ import annotations

from dataclasses import dataclass

from crystalml.errors import InputError

OPTIMIZERS = ("lbfgs", "fire")


@dataclass(frozen=True)
class RelaxSettings:
    """fmax: converged when no force, nor row of -V stress / N, exceeds this (eV/A). max_steps: then give up.

    cell: move the cell, too, of crystals periodic in three directions. fix_symmetry: keep the space group of
    the start. optimizer: "lbfgs" or "fire". symprec: in Angstrom, for the space groups that are kept and
    reported; None means 0.01 with fix_symmetry (ASE's choice, as it moves the start onto the symmetry found),
    else 0.1 (the Materials Project's, as relaxed crystals miss their symmetry by some hundredths).
    trajectory: keep energies, forces and geometries of all steps.
    """

    fmax: float = 0.05
    max_steps: int = 500
    cell: bool = True
    fix_symmetry: bool = False
    optimizer: str = "lbfgs"
    symprec: float | None = None
    trajectory: bool = False

    def __post_init__(self) -> None:
        if not (self.fmax > 0 and self.max_steps >= 0):
            values = f"fmax {self.fmax!r} and max_steps {self.max_steps!r}"
            raise InputError(f"relaxation needs fmax > 0 and max_steps >= 0, not {values}")
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {self.optimizer!r}")
        if self.symprec is not None and not self.symprec > 0:
            raise InputError(f"symprec must be positive (Angstrom), not {self.symprec!r}")

    @property
    def tolerance(self) -> float:
        """symprec in Angstrom, the default filled in."""
        return self.symprec or (0.01 if self.fix_symmetry else 0.1)
