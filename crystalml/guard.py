"""The door out of a sampler: which draws become Structures, and in which orientation."""

from __future__ import annotations

import torch
from pymatgen.core import Structure
from torch import Tensor

from crystalml.convert import to_structures
from crystalml.crystal import CrystalBatch
from crystalml.geometry import lattice as cell_geometry
from crystalml.geometry.torus import wrap
from crystalml.metrics.validity import MIN_DISTANCE, MIN_VOLUME, is_valid_structure

MAX_LENGTH = 500.0  # Angstrom; ten times the longest cell vector of the training crystals
MIN_SKEW = 0.01  # V / abc; Niggli-reduced cells, which is what models learn, have at least 0.7
TOO_CLOSE = f"atoms closer than {MIN_DISTANCE} A"


def is_finite(x: CrystalBatch) -> bool:
    return bool(torch.isfinite(x.frac).all() and torch.isfinite(x.lattice).all())


def standardise(x: CrystalBatch) -> CrystalBatch:
    """The same crystals in pymatgen's orientation, right-handed.

    L -> -L, F -> w(-F) is the same crystal with the other handedness; then rebuilding the cell from its
    lengths and angles is a proper rotation. The prior has no preferred hand, so half of the samples need it.
    """
    flip = torch.linalg.det(x.lattice) < 0
    frac = torch.where(flip[x.index][:, None], wrap(-x.frac), x.frac)
    lattice: Tensor = cell_geometry.from_params(cell_geometry.params(x.lattice.double()))
    return x.replace(frac=frac, lattice=lattice.to(x.lattice.dtype))


def to_valid_structure(x: CrystalBatch) -> tuple[Structure | None, str]:
    """(Structure, "") for one sampled crystal that passes the guard, else (None, why not)."""
    if not is_finite(x):
        return None, "not finite"
    lengths, volume = torch.linalg.vector_norm(x.lattice[0], dim=-1), float(x.volume[0])
    if volume < MIN_VOLUME:
        return None, "no volume"
    # Needles and sheets have millions of images within any distance: out before neighbours are searched.
    if float(lengths.max()) > MAX_LENGTH or volume < MIN_SKEW * float(lengths.prod()):
        return None, "degenerate cell"
    if float(lengths.min()) < MIN_DISTANCE:
        return None, TOO_CLOSE
    structure = to_structures(standardise(x))[0]
    return (structure, "") if is_valid_structure(structure) else (None, TOO_CLOSE)
