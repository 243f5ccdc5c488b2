"""The standard cell of a crystal: primitive, Niggli-reduced, as it comes."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.geometry.groups import delaunay_reduced, niggli_reduced, symmetry_dataset
from crystalml.geometry.lattice import determinant
from crystalml.geometry.torus import wrap

Array = NDArray[np.float64]
Ids = NDArray[np.int64]


def primitive_cells(x: CrystalBatch, symprec: float = 0.01) -> tuple[CrystalBatch, Tensor]:
    """The same crystals in primitive Niggli cells, and (n,) for each atom of x the atom that stands for it.

    So that what a network says that knows the cell (Fourier features, metric) depends on the crystal alone.
    Atoms are taken as they are, not symmetrised; symprec in Angstrom decides which are translations of one
    another. Labels stay behind. A cell that spglib cannot read is kept.
    """
    given = x.to("cpu", torch.float64)
    numbers, frac, boxes = given.numbers.numpy(), given.frac.numpy(), given.lattice.numpy()
    cells, kept, owners, counts = [], [], [], []
    first = start = 0  # atoms before this crystal, of x and of the answer
    for box, count in zip(boxes, given.num_atoms.tolist(), strict=True):
        mine = slice(first, first + count)
        cell, chosen, owner = _reduce(box, frac[mine], numbers[mine], symprec)
        cells.append(cell)
        kept.append(chosen + first)
        owners.append(owner + start)
        counts.append(len(chosen))
        first, start = first + count, start + len(chosen)
    lattice, atoms = torch.from_numpy(np.stack(cells)), torch.from_numpy(np.concatenate(kept))
    lattice = torch.where(determinant(lattice)[:, None, None] < 0, -lattice, lattice)  # right-handed
    basis = given.lattice @ torch.linalg.inv(lattice)
    place = wrap((given.frac[atoms, None] @ basis[given.index[atoms]])[:, 0])
    batch = CrystalBatch(given.numbers[atoms], place, lattice, torch.tensor(counts)).to(x.device, x.dtype)
    return batch.replace(frac=wrap(batch.frac)), torch.from_numpy(np.concatenate(owners)).to(x.device)


def _reduce(lattice: Array, frac: Array, numbers: Ids, symprec: float) -> tuple[Array, Ids, Ids]:
    """Lattice rows, atoms kept, and the place among them of each atom's representative."""
    count = len(numbers)
    chosen = owner = np.arange(count)
    if not _may_repeat(lattice, frac, numbers, 2 * symprec):
        return niggli_reduced(delaunay_reduced(lattice, symprec)), chosen, owner  # as below, 30 times faster
    found = symmetry_dataset((lattice, frac, numbers), symprec)
    if found is not None:
        _, first, place = np.unique(found.mapping_to_primitive, return_index=True, return_inverse=True)
        share = abs(np.linalg.det(found.primitive_lattice) / np.linalg.det(lattice))
        if abs(share * count - len(first)) < 1e-3:
            lattice, chosen, owner = np.asarray(found.primitive_lattice), first, place
    return niggli_reduced(lattice), chosen, owner


def _may_repeat(lattice: Array, frac: Array, numbers: Ids, within: float) -> bool:
    """Whether a translation shorter than the cell takes every atom to within so many Angstrom of a like one.

    It would take an atom of the rarest kind to another, and its order would divide the count of every kind.
    """
    amounts = np.bincount(numbers)
    kinds = np.flatnonzero(amounts)
    counts = amounts[kinds]
    if math.gcd(*counts.tolist()) == 1:
        return False
    groups = [frac[numbers == kind] for kind in kinds[counts.argsort()]]

    def meets(points: Array, group: Array) -> NDArray[np.bool_]:
        delta = points[:, None] - group
        vector = (delta - np.rint(delta)) @ lattice
        return ((vector**2).sum(-1) < within**2).any(-1)

    steps = groups[0][1:] - groups[0][0]
    for group in groups[1:]:  # where one atom of each kind goes rules out most
        steps = steps[meets(group[0] + steps, group)]
    return any(all(meets(group + step, group).all() for group in groups) for step in steps)
