"""Elastic moduli: DFT's own word on the curvature of the energy."""

from __future__ import annotations

import torch
from torch import Tensor

from crystalml.crystal import EV_PER_A3, CrystalBatch

STRAINS = (0.005, 0.02)  # learned at one strain, a well may be as steep there and flat elsewhere
FLOOR = 10.0  # GPa: below, errors count by their size and no longer by their share
_LEAST = 3.0  # GPa: a crystal with a softer strain is not stable enough for compliances


def unit_strains(like: Tensor) -> Tensor:
    """(6, 3, 3) strains in Voigt's order xx, yy, zz, yz, xz, xy; shears of gamma = 1."""
    strains = like.new_zeros(6, 3, 3)
    for k, (a, b) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):
        strains[k, a, b] += 0.5
        strains[k, b, a] += 0.5
    return strains


def random_strains(x: CrystalBatch, generator: torch.Generator | None) -> Tensor:
    """(b,) how far to strain each crystal."""
    share = torch.rand(len(x), generator=generator, device=x.device, dtype=x.dtype)
    return STRAINS[0] + (STRAINS[1] - STRAINS[0]) * share


def disturbed(x: CrystalBatch, strain: Tensor) -> CrystalBatch:
    """(12 b) crystals: x under six strains of size `strain` (b,), then under the opposite ones.

    Atoms go along by the site label `response` (n, 6, 3), Angstrom per unit strain beyond the cell's own
    motion; without it they are held.
    """
    units, inverse = unit_strains(x.lattice), torch.linalg.inv(x.lattice)[x.index]
    way = x.site_labels.get("response")
    bare = x.replace(labels={}, site_labels={})
    parts = []
    for size in (strain, -strain):
        for k in range(6):
            lattice = x.lattice + x.lattice @ (size[:, None, None] * units[k])
            frac = x.frac
            if way is not None:
                frac = frac + size[x.index, None] * torch.einsum("ni,nij->nj", way[:, k], inverse)
            parts.append(bare.replace(lattice=lattice, frac=frac))
    return CrystalBatch.cat(parts)


def elastic_tensor(x: CrystalBatch, strain: Tensor, forces: Tensor, stress: Tensor) -> Tensor:
    """C (b, 6, 6) in GPa from forces (12 n, 3) and stresses (12 b, 3, 3) of `disturbed(x, strain)`.

    With z_k = (strain k, its response) and H the second derivatives of the energy, V C_jk = z_j H z_k, read
    from first differences as V s_j(z_k) - u_j . F(z_k). The right u_k make V C_kk least: what they are off by
    enters squared, and C learns with them fixed as it would with them following.
    """
    n, b = len(x.numbers), len(x)
    s, f = stress.view(2, 6, b, 3, 3), forces.view(2, 6, n, 3)
    c = torch.einsum("kbij,mij->bkm", s[0] - s[1], unit_strains(x.lattice))
    if (way := x.site_labels.get("response")) is not None:
        work = torch.einsum("kni,nmi->nkm", f[0] - f[1], way)
        c = c - work.new_zeros(b, 6, 6).index_add(0, x.index, work) / x.volume[:, None, None]
    c = EV_PER_A3 * c / (2 * strain[:, None, None])
    return (c + c.mT) / 2


def bulk_and_shear(c: Tensor) -> tuple[Tensor, Tensor]:
    """K and G (b,) of elastic tensors (b, 6, 6) by Voigt, Reuss and Hill; Voigt's alone of unstable ones."""
    normal, shear, across = _parts(c)
    voigt = ((normal + 2 * across) / 9, (normal - across + 3 * shear) / 15)
    sound = c.detach().isfinite().all(-1).all(-1)  # LAPACK refuses NaN; the loss keeps it and is skipped
    certain = torch.where(sound[:, None, None], c.detach().double(), 0.0)
    stable = sound & (torch.linalg.eigvalsh(certain)[:, 0] > _LEAST)
    safe = torch.where(stable[:, None, None], c, 100 * torch.eye(6, dtype=c.dtype, device=c.device))
    normal, shear, across = _parts(torch.linalg.inv(safe))
    reuss = (1 / (normal + 2 * across), 15 / (4 * normal - 4 * across + 3 * shear))
    k, g = (torch.where(stable, (v + r) / 2, v) for v, r in zip(voigt, reuss, strict=True))
    return k, g


def _parts(c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """C_11 + C_22 + C_33, C_44 + C_55 + C_66, C_12 + C_13 + C_23."""
    diagonal = c.diagonal(dim1=1, dim2=2)
    return diagonal[:, :3].sum(1), diagonal[:, 3:].sum(1), c[:, 0, 1] + c[:, 0, 2] + c[:, 1, 2]


def misfit(found: Tensor, true: Tensor) -> Tensor:
    """Errors as shares of the true moduli, (b,): (found - true) / (true + 10 GPa)."""
    return (found - true) / (true + FLOOR)
