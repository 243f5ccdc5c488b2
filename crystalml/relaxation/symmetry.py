"""Symmetry kept while relaxing: operations found by spglib, forces averaged over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.errors import InputError
from crystalml.geometry.groups import symmetry_dataset
from crystalml.geometry.lattice import mean_gram
from crystalml.geometry.torus import logmap, wrap
from crystalml.relaxation.coordinates import Vector


@dataclass(frozen=True)
class Operations:
    """The g operations of one crystal: Cartesian rotations (g, 3, 3), which turn rows, v -> v R, and the atom
    that each one carries each atom to, (g, n).

    They hold for the whole relaxation: D of the steps so averaged commutes with every R.
    """

    rotation: Tensor
    image: Tensor


def symmetrized(x: CrystalBatch, symprec: float) -> tuple[CrystalBatch, Operations]:
    """One crystal moved onto the symmetry that spglib finds within symprec (Angstrom), and its operations.

    Of a crystal that keeps x' = W x + w within symprec: the metric becomes the mean of W^T (L L^T) W, by a
    symmetric strain, so that nothing turns; each atom the mean of all images that coincide with it.
    Raises InputError if spglib finds no symmetry at all, not even the identity.
    """
    lattice, frac = x.lattice[0].double().cpu(), x.frac.double().cpu()
    found = _dataset((lattice.numpy(), frac.numpy(), x.numbers.cpu().numpy()), symprec)
    w = torch.from_numpy(np.array(found.rotations, dtype=np.float64))
    t = torch.from_numpy(np.array(found.translations, dtype=np.float64))
    carried = torch.einsum("gij,nj->gni", w, frac) + t[:, None]
    image = torch.stack([_nearest(points, frac, lattice, x.numbers.cpu()) for points in carried])
    if (image.sort(dim=1).values != torch.arange(len(frac))).any():
        raise InputError(f"symprec {symprec} Angstrom confuses atoms; use a smaller one")

    metric = mean_gram(lattice, w)
    inverse = torch.linalg.inv(lattice)
    values, vectors = torch.linalg.eigh(inverse @ metric @ inverse.T)
    lattice = lattice @ (vectors * values.sqrt()) @ vectors.T
    off = logmap(carried - frac[image])
    frac = frac + torch.zeros_like(frac).index_add(0, image.flatten(), off.flatten(0, 1)) / len(w)
    rotation = torch.linalg.inv(lattice) @ w.mT @ lattice
    fixed = x.replace(frac=wrap(frac).to(x.frac), lattice=lattice[None].to(x.lattice))
    return fixed, Operations(rotation.to(x.lattice), image.to(x.device))


def _dataset(cell: tuple[Any, Any, Any], symprec: float) -> Any:
    found = symmetry_dataset(cell, symprec)
    if found is None:
        raise InputError(
            f"spglib finds no space group within symprec {symprec} Angstrom; use a smaller symprec, "
            "or relax with fix_symmetry=False"
        )
    return found


def _nearest(points: Tensor, frac: Tensor, lattice: Tensor, numbers: Tensor) -> Tensor:
    """(n,) for each point the atom of its element that lies nearest."""
    distance = (logmap(points[:, None] - frac[None]) @ lattice).norm(dim=-1)
    return distance.masked_fill(numbers[:, None] != numbers[None], torch.inf).argmin(1)


class Averages:
    """The mean of vectors over the operations of each crystal of a batch, in the order of its crystals."""

    def __init__(self, x: CrystalBatch, groups: Sequence[Operations]) -> None:
        order = [len(group.rotation) for group in groups]
        counts, first = x.num_atoms.tolist(), x.offsets.tolist()
        self.rotation = torch.cat([group.rotation for group in groups])
        self.crystal = torch.arange(len(x), device=x.device).repeat_interleave(
            torch.tensor(order, device=x.device)
        )
        source, target, operation, start = [], [], [], 0
        for group, g, n, atom in zip(groups, order, counts, first, strict=True):
            source.append(torch.arange(n, device=x.device).repeat(g) + atom)
            target.append(group.image.flatten() + atom)
            operation.append(torch.arange(g, device=x.device).repeat_interleave(n) + start)
            start += g
        self.source, self.target, self.operation = (torch.cat(p) for p in (source, target, operation))
        self.share = 1 / torch.tensor(order, device=x.device).to(x.lattice)

    def __call__(self, x: CrystalBatch, v: Vector) -> Vector:
        """v_j <- mean over operations of v_i R with i carried to j; cells M <- mean of R^T M R."""
        turned = torch.einsum("mi,mij->mj", v.atoms[self.source], self.rotation[self.operation])
        atoms = torch.zeros_like(v.atoms).index_add(0, self.target, turned)
        cells = self.rotation.mT @ v.cell[self.crystal] @ self.rotation
        cell = torch.zeros_like(v.cell).index_add(0, self.crystal, cells)
        return Vector(atoms * self.share[x.index][:, None], cell * self.share[:, None, None])
