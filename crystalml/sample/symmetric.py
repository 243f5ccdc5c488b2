"""Sampling within a space group: every move is the projection of a free one onto symmetric moves.

Crystals of one group with given orbits are F = F_0 + A u (mod 1), linear in the free coordinates u of one
atom an orbit. Lattices are those that the group's rotations map onto themselves: where the process is one of
matrices L, a linear space at fixed Cartesian axes; where it is one of the symmetric P = (L L^T)^(1/2), those
whose metric P^2 the rotations leave alone. Score, lattice noise, random numbers and guidance are projected
onto these; a path that starts in them never leaves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch, Tangent
from crystalml.geometry import lie
from crystalml.geometry.lattice import gram, mean_gram
from crystalml.noise.gaussian import GaussianDDPM
from crystalml.noise.lie import PredictedCell
from crystalml.noise.product import LatticeNoise
from crystalml.noise.rng import Draws
from crystalml.sample.base import Denoiser, Guide


@dataclass(frozen=True)
class Orbits:
    """One crystal's symmetry. n atoms, the atoms of an orbit in any order.

    origin: (n, 3) F_0, one configuration of the kind. first: (n,) the atom whose coordinates are an atom's
    free ones. turn: (n, 3, 3), displacements of `first` (rows) to the atom's: d_i = d_first @ turn_i, which
    is zero along directions that its site's symmetry forbids. lattice: (9, 9) projector on allowed lattices,
    flattened. rotations: (g, 3, 3) the group's, of fractional columns, which leave the metric alone.
    """

    origin: Tensor
    first: Tensor
    turn: Tensor
    lattice: Tensor
    rotations: Tensor

    def spread(self) -> Tensor:
        """(3n, 3n) A: takes the displacements of the first atoms to all atoms'; other columns are zero."""
        n = len(self.first)
        out = self.turn.new_zeros(n, 3, n, 3)
        out[torch.arange(n), :, self.first] = self.turn.mT
        return out.reshape(3 * n, 3 * n)


@dataclass(frozen=True)
class Symmetric:
    """The orbits of a batch, all of one group, as matrices on its padded coordinates.

    noise: the process of the lattice, which knows cells in one way or the other (see above).
    spread: (b, 3m, 3m) A of each crystal, m the most atoms of any. project: (b, 3m, 3m) on the range of A.
    lattice: (9, 9). rotations: (g, 3, 3).
    """

    noise: LatticeNoise
    spread: Tensor
    project: Tensor
    origin: Tensor
    lattice: Tensor
    rotations: Tensor

    @staticmethod
    def of(orbits: Sequence[Orbits], noise: LatticeNoise, device: torch.device | str = "cpu") -> Symmetric:
        width = 3 * max(len(o.first) for o in orbits)
        spread = torch.zeros(len(orbits), width, width, dtype=torch.float64)
        for k, o in enumerate(orbits):
            a = o.spread().double()
            spread[k, : len(a), : len(a)] = a
        project = spread @ torch.linalg.pinv(spread, rtol=1e-8)
        origin = torch.cat([o.origin.double() for o in orbits])
        shared = orbits[0].lattice.double(), orbits[0].rotations.double()
        return Symmetric(noise, *(x.to(device) for x in (spread, project, origin, *shared)))

    @property
    def linear(self) -> bool:
        """Whether lattices, their noise and moves are matrices at fixed axes."""
        return isinstance(self.noise, GaussianDDPM)

    def denoiser(self, denoise: Denoiser) -> Denoiser:
        """The denoiser whose outputs are the symmetric part of the given one's."""

        def projected(x: CrystalBatch, t: Tensor) -> Tangent:
            out = denoise(x, t)
            assert out.frac is not None and out.lattice is not None
            with torch.autocast(x.device.type, enabled=False):  # in bfloat16 projections are no projections
                lattice, frac = out.lattice.to(x.lattice), out.frac.to(x.frac)
                lattice = self.cells(lattice) if self.linear else self._log_cells(lattice)
                return Tangent(lattice=lattice, frac=self.sites(x, frac, self.project))

        return projected

    def guide(self, guide: Guide) -> Guide:
        """The guide whose gradients are the symmetric part of the given one's."""

        def projected(x: CrystalBatch, t: Tensor) -> Tangent:
            out = guide(x, t)
            frac = None if out.frac is None else self.sites(x, out.frac, self.project)
            lattice = out.lattice
            if lattice is not None and self.linear:  # of any other, `hold` takes care
                lattice = self.cells(lattice)
            return Tangent(lattice=lattice, frac=frac)

        return projected

    def draws(self, draws: Draws, x: CrystalBatch) -> SymmetricDraws:
        return SymmetricDraws(self, draws, x)

    def hold(self, x: CrystalBatch, level: int) -> CrystalBatch:
        """Lattices projected once more: a sampler's bounds know no symmetry, nor do moves of log P."""
        if level and isinstance(self.noise, PredictedCell):  # what the network sees is no cell yet
            return x
        return x.replace(lattice=self.cells(x.lattice))

    def sites(self, x: CrystalBatch, moves: Tensor, matrix: Tensor) -> Tensor:
        """(n, 3) moves of the atoms of x under (b, 3m, 3m) matrices."""
        flat = x.pad(moves).flatten(1)[..., None]
        out = (matrix.to(flat) @ flat).squeeze(-1).unflatten(1, (-1, 3))
        return out.flatten(0, 1)[x.slots()]

    def cells(self, lattice: Tensor) -> Tensor:
        """(b, 3, 3) lattices, or where these are a linear space their moves, projected.

        Else P of the mean metric over all rotations, at the same volume: a mean alone would be larger.
        """
        if self.linear:
            return (self.lattice.to(lattice) @ lattice.flatten(1)[..., None]).view_as(lattice)
        _, turn = lie.polar(lattice)
        return (torch.matrix_exp(self._mean_log(lattice)) @ turn).to(lattice)

    def _log_cells(self, log: Tensor) -> Tensor:
        """(b, 3, 3) log P, projected."""
        return self._mean_log(torch.matrix_exp(log.double())).to(log)

    def _mean_log(self, lattice: Tensor) -> Tensor:
        """log P of the mean metric at the lattice's volume."""
        lattice = lattice.double()
        mean = mean_gram(lattice, self.rotations)
        grown = torch.linalg.det(mean) / torch.linalg.det(gram(lattice))
        return lie.polar(torch.linalg.cholesky(mean / grown[:, None, None] ** (1 / 3)))[0]


@dataclass(frozen=True)
class SymmetricDraws:
    """Random numbers that keep the symmetry: an orbit moves as its first atom, lattices are projected where
    they are a linear space.
    """

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
        normal = self.draws.lattice_normal(draw)
        return self.symmetric.cells(normal) if self.symmetric.linear else normal
