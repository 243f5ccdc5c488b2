"""L-BFGS: a quasi-Newton method, with a history of its own for every crystal of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.relaxation.coordinates import Vector, dot, longest

NOISE = (1e-5, 1e-6)  # an energy is worse if higher by more than this a atom (eV) and of its size: float32


@dataclass(frozen=True)
class Lbfgs:
    """d = H F, with H from the last `memory` pairs of steps s and changes of gradient y by the two-loop
    recursion, H0 = (s.y / y.y) of the newest pair (Nocedal & Wright, Numerical Optimization, 2nd ed.,
    algorithm 7.4 and eq. 7.20), 1 / alpha before there is one.

    Each crystal keeps three rules of its own. A step is cut so that no atom, nor row of the cell, moves by
    more than max_step (Angstrom). A step that raised the energy is halved, up to `halvings` times. A pair
    without positive curvature is left out, and a direction that points uphill clears the history.

    alpha: eV/A^2, ASE's guess of the curvature, which makes the first steps short.
    """

    memory: int = 20
    max_step: float = 0.1
    alpha: float = 70.0
    halvings: int = 3

    def rest(self, x: CrystalBatch) -> CrystalBatch:
        """The crystals with the optimiser's state as labels, before the first step."""
        b, n, m, zeros = len(x), len(x.numbers), self.memory, x.lattice.new_zeros
        labels = {
            **x.labels,
            "pairs": torch.zeros_like(x.num_atoms),
            "halved": torch.full_like(x.num_atoms, -1),  # has not moved yet
            "base energy": zeros(b),
            "base force cell": zeros(b, 3, 3),
            "last cell": zeros(b, 3, 3),
            "s cell": zeros(b, m, 3, 3),
            "y cell": zeros(b, m, 3, 3),
        }
        sites = {"base force": zeros(n, 3), "last": zeros(n, 3), "s": zeros(n, m, 3), "y": zeros(n, m, 3)}
        return x.replace(labels=labels, site_labels={**x.site_labels, **sites})

    def step(self, x: CrystalBatch, energy: Tensor, force: Vector) -> tuple[CrystalBatch, Vector]:
        """The crystals with their new state, and where each of them should go from here."""
        last = Vector(x.site_labels["last"], x.labels["last cell"])  # from the base to here
        base = Vector(x.site_labels["base force"], x.labels["base force cell"])
        halved = x.labels["halved"]
        allowed = NOISE[0] * x.num_atoms + NOISE[1] * energy.abs()
        worse = (halved >= 0) & (halved < self.halvings) & (energy > x.labels["base energy"] + allowed)

        change = base.plus(force.scaled(x, -torch.ones_like(energy)))
        x = self._learn(x, last, change, ~worse & (halved >= 0))
        ahead = self._direction(x, force)
        lost = dot(x, ahead, force) <= 0
        ahead = _where(x, lost, force.scaled(x, torch.full_like(energy, 1 / self.alpha)), ahead)
        ahead = ahead.scaled(x, (self.max_step / longest(x, ahead)).clamp(max=1.0))
        back = last.scaled(x, torch.full_like(energy, -0.5))

        step = _where(x, worse, back, ahead)
        last = _where(x, worse, last.plus(back), ahead)
        base = _where(x, worse, base, force)
        labels = {
            **x.labels,
            "pairs": torch.where(lost & ~worse, torch.zeros_like(halved), x.labels["pairs"]),
            "halved": torch.where(worse, halved + 1, torch.zeros_like(halved)),
            "base energy": torch.where(worse, x.labels["base energy"], energy),
            "base force cell": base.cell,
            "last cell": last.cell,
        }
        sites = {**x.site_labels, "base force": base.atoms, "last": last.atoms}
        return x.replace(labels=labels, site_labels=sites), step

    def _learn(self, x: CrystalBatch, s: Vector, y: Vector, moved: Tensor) -> CrystalBatch:
        """The pair (s, y) appended, newest last, where the crystal moved and the curvature is positive."""
        good = moved & (dot(x, s, y) > 1e-8 * (dot(x, s, s) * dot(x, y, y)).sqrt())
        atoms = good[x.index]
        labels, sites = dict(x.labels), dict(x.site_labels)
        for name, value in {"s": s, "y": y}.items():
            labels[f"{name} cell"] = _append(labels[f"{name} cell"], value.cell, good)
            sites[name] = _append(sites[name], value.atoms, atoms)
        labels["pairs"] = (labels["pairs"] + good.long()).clamp(max=self.memory)
        return x.replace(labels=labels, site_labels=sites)

    def _direction(self, x: CrystalBatch, force: Vector) -> Vector:
        """H F by the two-loop recursion, on coefficients of the basis [s of all pairs | y | F].

        With the products of the basis known, (b, 2m + 1, 2m + 1), the loops touch small tensors only.
        A crystal with k pairs takes part in the k newest turns.
        """
        pairs = x.labels["pairs"]
        m = int(pairs.max())
        newest = slice(self.memory - m, None)
        atoms = torch.cat([*(x.site_labels[k][:, newest] for k in "sy"), force.atoms[:, None]], 1)
        cell = torch.cat([*(x.labels[f"{k} cell"][:, newest] for k in "sy"), force.cell[:, None]], 1)
        flat = torch.cat([x.pad(atoms).transpose(1, 2), cell], 2).flatten(2)
        product = flat @ flat.mT
        c = torch.zeros_like(product[:, 0])
        c[:, -1] = 1  # F itself
        weights = []
        for k in range(m - 1, -1, -1):  # newest first; s is vector k, y vector m + k
            taken = pairs >= m - k
            rho = taken / torch.where(taken, product[:, k, m + k], 1.0)
            weights.append((rho, rho * (product[:, k] * c).sum(1)))
            c[:, m + k] -= weights[-1][1]
        start = torch.full_like(c[:, 0], 1 / self.alpha)
        if m:
            start = torch.where(pairs > 0, product[:, m - 1, 2 * m - 1] / product[:, -2, -2], start)
        c *= start[:, None]
        for k, (rho, weight) in enumerate(reversed(weights)):
            c[:, k] += weight - rho * (product[:, m + k] * c).sum(1)
        return Vector(torch.einsum("nki,nk->ni", atoms, c[x.index]), torch.einsum("bkij,bk->bij", cell, c))


def _append(history: Tensor, value: Tensor, where: Tensor) -> Tensor:
    """The oldest entry (axis 1) out, the value in, in the rows marked."""
    shifted = torch.cat([history[:, 1:], value[:, None]], dim=1)
    return torch.where(where.view(-1, *[1] * (history.dim() - 1)), shifted, history)


def _where(x: CrystalBatch, which: Tensor, a: Vector, b: Vector) -> Vector:
    """a for the crystals marked in (b,), b for the others."""
    return Vector(
        torch.where(which[x.index][:, None], a.atoms, b.atoms),
        torch.where(which[:, None, None], a.cell, b.cell),
    )
