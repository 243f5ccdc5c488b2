"""Screened nuclear repulsion: the wall that no network has to learn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crystalml.elements import covalent_radii
from crystalml.models.pairs import Pairs, envelope

COULOMB = 14.399645  # e^2 / (4 pi epsilon_0) in eV Angstrom
_SHARES = (0.18175, 0.50986, 0.28022, 0.02817)  # phi(x) = sum_k c_k exp(-l_k x), of which c_k and -l_k
_RATES = (-3.19980, -0.94229, -0.40290, -0.20162)

REACH = 0.8  # in sums of covalent radii: ZBL is zero beyond, where the bonds of nearly all crystals are


class ShortRange(nn.Module):
    """V(r) = Z_i Z_j e^2 / (4 pi eps0 r) phi(r / a) u(r / r_off), r_off = 0.8 (R_i + R_j).

    phi is the universal function and a = 0.46850 / (Z_i^0.23 + Z_j^0.23) Angstrom (Ziegler, Biersack &
    Littmark, The Stopping and Range of Ions in Solids (1985)), u the envelope. Every factor is positive and
    falls with r, so V does. The radii are kept with the weights.
    """

    radii: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("radii", covalent_radii().clone())

    def sums(self, numbers: Tensor, pairs: Pairs) -> Tensor:
        """(n, K) R_i + R_j in Angstrom."""
        own = self.radii[numbers]
        return own[:, None] + pairs.gather(own)

    def forward(self, numbers: Tensor, pairs: Pairs) -> Tensor:
        """(n,) eV: half of each pair's energy goes to each of its atoms."""
        r = pairs.distance
        z = numbers.to(r.dtype)
        power = z**0.23
        x = r * ((power[:, None] + pairs.gather(power)) / 0.46850)
        phi = torch.exp(x[..., None] * r.new_tensor(_RATES)) @ r.new_tensor(_SHARES)
        switch = envelope(r / (REACH * self.sums(numbers, pairs)))
        return (0.5 * COULOMB * z[:, None] * pairs.gather(z) * phi * switch / r).sum(-1)
