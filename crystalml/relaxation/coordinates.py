"""What a relaxation moves: atoms and cell of a crystal as one vector, measured in its starting cell.

L = L0 D, D = exp(Q / s), X = Y D: the atoms at Y (n, 3) in the frame of the starting cell L0, and the
symmetric 3 x 3 matrix Q, both in Angstrom, s = 2 sqrt(N) Angstrom. These are the coordinates of ASE's
FrechetCellFilter with exp_cell_factor = s, but for rotations. A step in (Y, Q) means the same wherever the
crystal has got to, so that the history of a quasi-Newton method stays valid.

ASE's default s = N makes cells soft: the curvature along Q is V C / s^2 with C the elastic constants, which
s = N lets fall as 1 / N while s ~ sqrt(N) keeps it near that of the atoms, whatever the size of the cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.geometry.torus import wrap

START, STRAIN = "starting cell", "strain"  # labels: L0 and Q, (b, 3, 3) each


class Vector(NamedTuple):
    """A displacement, force or velocity of all crystals of a batch: atoms (n, 3) and cells (b, 3, 3)."""

    atoms: Tensor
    cell: Tensor

    def scaled(self, x: CrystalBatch, by: Tensor) -> Vector:
        """Each crystal's part times its entry of by (b,)."""
        return Vector(by[x.index][:, None] * self.atoms, by[:, None, None] * self.cell)

    def plus(self, other: Vector) -> Vector:
        return Vector(self.atoms + other.atoms, self.cell + other.cell)


def dot(x: CrystalBatch, a: Vector, b: Vector) -> Tensor:
    """(b,) scalar products over all coordinates of each crystal."""
    return (a.cell * b.cell).sum((1, 2)).index_add(0, x.index, (a.atoms * b.atoms).sum(1))


def longest(x: CrystalBatch, v: Vector) -> Tensor:
    """(b,) the longest row among the atoms' and the cell's; NaN where there is one."""
    rows = v.cell.norm(dim=-1).amax(dim=1)
    return rows.scatter_reduce(0, x.index, v.atoms.norm(dim=-1), "amax", include_self=True)


def cell_scale(x: CrystalBatch) -> Tensor:
    """(b,) the length s that Q is measured with."""
    return 2 * x.num_atoms.to(x.lattice).sqrt()


def begin(x: CrystalBatch) -> CrystalBatch:
    """The crystals at the origin of their coordinates: L0 = L, Q = 0, as labels."""
    labels = {**x.labels, START: x.lattice, STRAIN: torch.zeros_like(x.lattice), "pbc": x.pbc}
    return x.replace(labels=labels)


def physical(x: CrystalBatch, out: Mapping[str, Tensor], cell: bool) -> Vector:
    """Forces (n, 3) and -V stress / N (b, 3, 3), both in eV/A as ASE measures them, in the crystals' dtype.

    The latter is 0 with cell=False and for crystals that are not periodic in all three directions.
    """
    force = out["forces"].detach().to(x.frac)
    moves = x.pbc.all(dim=1) & cell
    pull = -x.volume[:, None, None] * out["stress"].detach().to(x.lattice) / x.num_atoms[:, None, None]
    return Vector(force, torch.where(moves[:, None, None], pull, torch.zeros_like(pull)))


def pulled_back(x: CrystalBatch, force: Vector) -> Vector:
    """(-dE/dY, -dE/dQ) from the `physical` forces (f, -V stress / N).

    -dE/dY = f D. With Q / s = U diag(l) U^T and P = -V stress, the derivative of the exponential gives
    -dE/dQ = U [(U^T P U)_ij sinh(l_i - l_j) / (l_i - l_j)] U^T / s.
    """
    l, u = _eigen(x)
    gap = l[:, :, None] - l[:, None, :]
    near = gap.abs() < 1e-6
    ratio = torch.where(near, 1.0, gap.sinh() / torch.where(near, 1.0, gap))
    virial = force.cell * (x.num_atoms / cell_scale(x))[:, None, None]
    pull = u @ ((u.mT @ virial @ u) * ratio) @ u.mT
    return Vector(torch.einsum("ni,nij->nj", force.atoms, _exp(l, u)[x.index]), pull)


def moved(x: CrystalBatch, step: Vector) -> CrystalBatch:
    """The crystals at (Y, Q) + step; atoms return to the cell along periodic directions."""
    start, strain = x.labels[START], x.labels[STRAIN]
    frac = x.frac + torch.einsum("ni,nij->nj", step.atoms, torch.linalg.inv(start)[x.index])
    strain = strain + 0.5 * (step.cell + step.cell.mT)
    after = x.replace(frac=torch.where(x.pbc[x.index], wrap(frac), frac), labels={**x.labels, STRAIN: strain})
    return after.replace(lattice=start @ _exp(*_eigen(after)))


def _eigen(x: CrystalBatch) -> tuple[Tensor, Tensor]:
    """(b, 3) eigenvalues and (b, 3, 3) eigenvectors, in columns, of Q / s."""
    strain = x.labels[STRAIN] / cell_scale(x)[:, None, None]
    sound = strain.isfinite().all(-1).all(-1)[:, None, None]  # LAPACK refuses NaN for the whole batch
    found: tuple[Tensor, Tensor] = torch.linalg.eigh(torch.where(sound, strain, torch.zeros_like(strain)))
    return found


def _exp(l: Tensor, u: Tensor) -> Tensor:
    return (u * l.exp()[:, None, :]) @ u.mT
