"""Elastic moduli of cubic crystals: DFT's own word on the curvature of the energy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from crystalml.crystal import CrystalBatch

STRAINS = (0.005, 0.03)  # learned at one strain, a well may be as steep there and flat elsewhere
MOVE = 0.03  # Angstrom
GPA = 160.21766208  # in one eV/A^3
FLOOR = 10.0  # GPa: below, errors count by their size and no longer by their share
_SOFT = 1.0  # eV/A^2: what force constants are taken for that are smaller or negative


def random_strains(x: CrystalBatch, generator: torch.Generator | None) -> Tensor:
    """(b,) how far to strain each crystal."""
    share = torch.rand(len(x), generator=generator, device=x.device, dtype=x.dtype)
    return STRAINS[0] + (STRAINS[1] - STRAINS[0]) * share


def disturbed(x: CrystalBatch, strain: Tensor) -> CrystalBatch:
    """(4 b) crystals: x strained by eps_xx = gamma_yz = +-strain, and with atoms +-MOVE along `internal`.

    strain: (b,). x: crystals with their cube's edges along x, y, z and the site label `internal`, as
    `cubic_moduli` gives.
    """
    e = x.lattice.new_tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.5], [0.0, 0.5, 0.0]]) * strain[:, None, None]
    way = torch.linalg.solve(x.lattice[x.index], x.site_labels["internal"][:, None], left=False)[:, 0]
    bare = x.replace(labels={}, site_labels={})
    strained = [bare.replace(lattice=x.lattice + sign * x.lattice @ e) for sign in (1, -1)]
    moved = [bare.replace(frac=x.frac + sign * MOVE * way) for sign in (1, -1)]
    return CrystalBatch.cat(strained + moved)


def bulk_and_shear(x: CrystalBatch, strain: Tensor, forces: Tensor, stress: Tensor) -> tuple[Tensor, Tensor]:
    """K and G (Voigt-Reuss-Hill), both (b,) in GPa, of x from forces (4 n, 3) and stresses (4 b, 3, 3) of
    `disturbed(x, strain)`, in eV/A and eV/A^3; differentiable.

    Atoms go as far as one direction of length 1 (`internal`) takes them: with the force f along it per strain
    and its force constant k, C_44 = C_44(atoms fixed) - f^2 / (V k).
    """
    n, b = len(x.numbers), len(x)
    s = (stress[:b] - stress[b : 2 * b]) / (2 * strain[:, None, None])
    c11, c12, c44 = s[:, 0, 0], (s[:, 1, 1] + s[:, 2, 2]) / 2, s[:, 1, 2]
    way = x.site_labels["internal"]

    def along(change: Tensor) -> Tensor:
        return change.new_zeros(b).index_add(0, x.index, (change * way).sum(-1))

    f = along(forces[:n] - forces[n : 2 * n]) / (2 * strain)
    k = -along(forces[2 * n : 3 * n] - forces[3 * n :]) / (2 * MOVE)
    c44 = c44 - f * f / (x.volume * (_SOFT + softplus(k - _SOFT)))
    bulk, prime = (c11 + 2 * c12) / 3, (c11 - c12) / 2
    voigt = (2 * prime + 3 * c44) / 5
    stable = (prime > 0) & (c44 > 0)
    low = torch.where(stable, 2 * c44 + 3 * prime, 1.0)
    reuss = torch.where(stable, 5 * prime * c44 / low, voigt)
    return GPA * bulk, GPA * (voigt + reuss) / 2


def misfit(found: Tensor, true: Tensor) -> Tensor:
    """Errors as shares of the true moduli, (b,): (found - true) / (true + 10 GPa)."""
    return (found - true) / (true + FLOOR)
