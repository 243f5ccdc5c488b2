"""Actions of a network on a crystal: forces along edges, and a vector field on the cell (GemsDiff)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from crystalml.crystal import CrystalBatch, Tangent
from crystalml.geometry import lie
from crystalml.geometry.torus import remove_mean
from crystalml.models.encoder import Features

_RANK = 8
_COLLINEAR = 1e-6  # sin^2 of angles whose direction of growth is not defined
_VOLUME = 18.5  # cubic Angstrom an atom: where the answer starts, the geometric mean of MP-20


class ActionHead(nn.Module):
    """Features with edges -> Tangent(frac x_0 - x_t, lattice log P_0).

    Positions: dx_i = sum_j w_ij a_ij u_ij, Cartesian (Klipfel et al. 2023), put into fractional components.

    Lattice: an element Y of the Lie algebra, the mean over atoms of sum_m w_m grad_g phi_m at g = 1 for the
    lengths and angles phi_m of edge pairs, with w_m read from the edges. The paper applies 1 + Y, the first
    order of exp(Y), to the unit cube; here log P_0 = Y + sum_i c_i B_i, so that the cell is right-handed and
    has a logarithm whatever the network says: c_i interpolates between a guess from the atoms, to whose
    volume ln N / sqrt(3) is added, and the noisy cell's own k_i.
    """

    def __init__(self, dim: int, edge_dim: int, centered: bool) -> None:
        super().__init__()
        self.centered = centered
        self.edge_in = nn.Linear(edge_dim, edge_dim)
        self.along = nn.Linear(edge_dim, 2)  # a_ij, and the weight of grad |u_ij|
        self.left, self.right = nn.Linear(edge_dim, 3 * _RANK), nn.Linear(edge_dim, 3 * _RANK)
        self.guess_in, self.guess = nn.Linear(dim, dim), nn.Linear(dim, 12)
        for layer in (self.along, self.right, self.guess):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.guess.bias[5] = math.log(_VOLUME) / 3**0.5

    def forward(self, features: Features, x: CrystalBatch) -> Tangent:
        with torch.autocast(x.device.type, enabled=False):
            assert features.edges is not None
            pairs, weight = features.edges.pairs, features.edges.weight
            e = nn.functional.silu(self.edge_in(features.edges.edge.to(x.dtype)))
            unit = pairs.vector / pairs.distance[..., None]
            push, stretch = self.along(e).unbind(-1)
            cart = ((weight * push)[..., None] * unit).sum(1)
            frac = (cart[:, None] @ torch.linalg.inv(x.lattice)[x.index])[:, 0]
            if self.centered:
                frac = remove_mean(frac, x.index, x.num_atoms)
            log, turn = lie.polar(x.lattice)
            shares = weight / weight.sum(1, keepdim=True).clamp(min=1e-6)
            upright = unit @ turn.to(x.dtype).mT[x.index]
            field = self.field(e, upright, shares, shares * stretch)
            mean = field.new_zeros(len(x), 3, 3).index_add(0, x.index, field)
            mean = mean / x.num_atoms[:, None, None]
            k = self.invariants(features.graph.to(x.dtype), lie.coordinates(log).to(x.dtype), x.num_atoms)
            return Tangent(lattice=mean + lie.element(k), frac=frac)

    def field(self, e: Tensor, unit: Tensor, shares: Tensor, stretch: Tensor) -> Tensor:
        """(n, 3, 3) symmetric: sum_j s_j u_j u_j^T + sum_jk w_jk grad_g theta_jk.

        grad_g theta = -(u v^T + v u^T - cos (u u^T + v v^T)) / sin, all of it U^T S U for one matrix S.
        """
        cos = unit @ unit.mT
        sin = 1 - cos.square()
        open_angle = sin > _COLLINEAR
        left, right = (f(e).unflatten(-1, (3, _RANK)).movedim(-2, 1) for f in (self.left, self.right))
        one, two, three = (left @ right.mT).unbind(1)  # coefficients of P_0, P_1, P_2 of the angle's cosine
        w = (one + cos * two + (1.5 * cos.square() - 0.5) * three) * shares[:, None] * shares[..., None]
        w = -w * torch.where(open_angle, sin, torch.ones_like(sin)).rsqrt() * open_angle
        w = w + w.mT
        s = w + torch.diag_embed(stretch - (w * cos).sum(-1))
        return unit.mT @ s @ unit

    def invariants(self, graph: Tensor, noisy: Tensor, num_atoms: Tensor) -> Tensor:
        """(b, 9) coordinates c of the answer from (b, dim) features and the noisy cell's (b, 9)."""
        guess, trust = self.guess(nn.functional.silu(self.guess_in(graph))).chunk(2, -1)
        size = torch.zeros_like(guess)
        size[:, 5] = num_atoms.to(guess.dtype).log() / 3**0.5
        guess = guess + size
        k = guess + torch.sigmoid(trust) * (noisy[:, 3:] - guess)
        return torch.cat([torch.zeros_like(k[:, :3]), k], -1)
