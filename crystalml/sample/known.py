"""What is known beforehand stays: a lattice, some sites. The rest is drawn around it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.noise.product import CrystalNoise
from crystalml.noise.rng import Draws


@dataclass(frozen=True)
class Known:
    """A sampler's `hold`: at every level, known parts become what the forward process makes of them there.

    x_t[known] ~ q(x_t | x_0), with one draw of noise for all levels, so that the network always sees a
    crystal that is noisy throughout; at level 0 they are x_0 itself (Lugmayr et al., RePaint, Eq. 8).

    crystal: the known lattice and coordinates, anything elsewhere. lattice: (b,) which cells are known.
    sites: (n,) which atoms are.
    """

    noise: CrystalNoise
    crystal: CrystalBatch
    lattice: Tensor
    sites: Tensor
    draws: Draws

    def __call__(self, x: CrystalBatch, level: int) -> CrystalBatch:
        seen = self.noise.at_level(self.crystal, level, self.draws) if level else self.crystal
        lattice = torch.where(self.lattice[:, None, None], seen.lattice.to(x.lattice), x.lattice)
        frac = torch.where(self.sites[:, None], seen.frac.to(x.frac), x.frac)
        return x.replace(lattice=lattice, frac=frac)
