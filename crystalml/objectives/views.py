"""Two views of a crystal: as it is, and with every atom moved a little."""

from __future__ import annotations

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.geometry.torus import remove_mean, wrap

SIGMA = 0.3  # Angstrom; GeoSSL's code, molecules


def displacement(x: CrystalBatch, sigma: float, generator: torch.Generator | None) -> Tensor:
    """(n, 3) sigma xi in Angstrom, xi ~ N(0, I) without its mean over each crystal: no translation."""
    xi = torch.randn(x.frac.shape, generator=generator, device=x.device, dtype=x.dtype)
    return sigma * remove_mean(xi, x.index, x.num_atoms)


def displaced(x: CrystalBatch, step: Tensor) -> CrystalBatch:
    """x with its atoms moved by (n, 3) Angstrom; only now positions are wrapped into the cell."""
    frac = x.frac + torch.einsum("ni,nij->nj", step, torch.linalg.inv(x.lattice)[x.index])
    return x.replace(frac=wrap(frac))
