"""Sampling within a space group: every move is the projection of a free one onto symmetric moves.

Crystals of one group with given orbits are F = F_0 + A u (mod 1), linear in the free coordinates u of one
atom an orbit, and L in the linear space of lattices that the group's rotations, at fixed Cartesian axes, map
onto themselves. Score, lattice noise and random numbers are projected onto these spaces; a path that starts
in them never leaves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch, Tangent
from crystalml.noise.rng import Draws
from crystalml.sample.base import Denoiser


@dataclass(frozen=True)
class Orbits:
    """One crystal's symmetry. n atoms, the atoms of an orbit in any order.

    origin: (n, 3) F_0, one configuration of the kind. first: (n,) the atom whose coordinates are an atom's
    free ones. turn: (n, 3, 3), displacements of `first` (rows) to the atom's: d_i = d_first @ turn_i, which
    is zero along directions that its site's symmetry forbids. lattice: (9, 9) projector on allowed lattices,
    flattened.
    """

    origin: Tensor
    first: Tensor
    turn: Tensor
    lattice: Tensor

    def spread(self) -> Tensor:
        """(3n, 3n) A: takes the displacements of the first atoms to all atoms'; other columns are zero."""
        n = len(self.first)
        out = self.turn.new_zeros(n, 3, n, 3)
        out[torch.arange(n), :, self.first] = self.turn.mT
        return out.reshape(3 * n, 3 * n)


@dataclass(frozen=True)
class Symmetric:
    """The orbits of a batch, as matrices on its padded coordinates.

    spread: (b, 3m, 3m) A of each crystal, m the most atoms of any. project: (b, 3m, 3m) on the range of A.
    lattice: (b, 9, 9).
    """

    spread: Tensor
    project: Tensor
    lattice: Tensor
    origin: Tensor

    @staticmethod
    def of(orbits: Sequence[Orbits], device: torch.device | str = "cpu") -> Symmetric:
        width = 3 * max(len(o.first) for o in orbits)
        spread = torch.zeros(len(orbits), width, width, dtype=torch.float64)
        for k, o in enumerate(orbits):
            a = o.spread().double()
            spread[k, : len(a), : len(a)] = a
        project = spread @ torch.linalg.pinv(spread, rtol=1e-8)
        lattice = torch.stack([o.lattice.double() for o in orbits])
        origin = torch.cat([o.origin.double() for o in orbits])
        return Symmetric(*(x.to(device) for x in (spread, project, lattice, origin)))

    def denoiser(self, denoise: Denoiser) -> Denoiser:
        """The denoiser whose outputs are the symmetric part of the given one's."""

        def projected(x: CrystalBatch, t: Tensor) -> Tangent:
            out = denoise(x, t)
            assert out.frac is not None and out.lattice is not None
            with torch.autocast(x.device.type, enabled=False):  # in bfloat16 projections are no projections
                lattice, frac = out.lattice.to(x.lattice), out.frac.to(x.frac)
                return Tangent(lattice=self.cells(lattice), frac=self.sites(x, frac, self.project))

        return projected

    def draws(self, draws: Draws, x: CrystalBatch) -> SymmetricDraws:
        return SymmetricDraws(self, draws, x)

    def hold(self, x: CrystalBatch, level: int) -> CrystalBatch:
        """Lattices projected once more: a sampler's bound on their entries knows no symmetry."""
        return x.replace(lattice=self.cells(x.lattice))

    def sites(self, x: CrystalBatch, moves: Tensor, matrix: Tensor) -> Tensor:
        """(n, 3) moves of the atoms of x under (b, 3m, 3m) matrices."""
        flat = x.pad(moves).flatten(1)[..., None]
        out = (matrix.to(flat) @ flat).squeeze(-1).unflatten(1, (-1, 3))
        return out.flatten(0, 1)[x.slots()]

    def cells(self, lattice: Tensor) -> Tensor:
        """(b, 3, 3) lattices or their moves, projected."""
        return (self.lattice.to(lattice) @ lattice.flatten(1)[..., None]).view_as(lattice)


@dataclass(frozen=True)
class SymmetricDraws:
    """Random numbers that keep the symmetry: an orbit moves as its first atom, lattices are projected."""

    symmetric: Symmetric
    draws: Draws
    x: CrystalBatch

    def atom_normal(self, draw: int, /) -> Tensor:
        return self.symmetric.sites(self.x, self.draws.atom_normal(draw), self.symmetric.spread)

    def atom_uniform(self, draw: int, /) -> Tensor:
        """Positions: every free coordinate anywhere in the cell."""
        moves = self.symmetric.sites(self.x, self.draws.atom_uniform(draw), self.symmetric.spread)
        return self.symmetric.origin.to(moves) + moves

    def lattice_normal(self, draw: int, /) -> Tensor:
        return self.symmetric.cells(self.draws.lattice_normal(draw))
