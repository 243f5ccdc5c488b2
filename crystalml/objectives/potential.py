"""The objective of a potential: energies, forces and stresses at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crystalml.crystal import CrystalBatch
from crystalml.models.heads import EnergyScale
from crystalml.objectives.dimers import attraction


@dataclass(frozen=True)
class Derivatives:
    """per_atom: (b,) energy in eV/atom. forces: (n, 3) in eV/A. stress: (b, 3, 3) in eV/A^3."""

    per_atom: Tensor
    forces: Tensor
    stress: Tensor


def derivatives(model: nn.Module, x: CrystalBatch, scale: EnergyScale, create_graph: bool) -> Derivatives:
    """forces = -dE/dX and stress = sym(dE/d eps) / V at L -> L (1 + eps), X -> X (1 + eps)."""
    with torch.enable_grad():
        move = torch.zeros_like(x.frac, requires_grad=True)
        strain = torch.zeros_like(x.lattice, requires_grad=True)
        frac = x.frac + torch.einsum("ni,nij->nj", move, torch.linalg.inv(x.lattice)[x.index])
        moved = x.replace(frac=frac, lattice=x.lattice + x.lattice @ strain)
        per_atom = scale.to_physical(model(moved).energy)
        energy = (per_atom * x.num_atoms).sum()
        slope, virial = torch.autograd.grad(energy, (move, strain), create_graph=create_graph)
    return Derivatives(per_atom, -slope, (virial + virial.mT) / (2 * x.volume[:, None, None]))


def pseudo_huber(error: Tensor, beta: float) -> Tensor:
    """sqrt(|d|^2 + beta^2) - beta over all axes but the first: |d| far out, smooth and quadratic near 0."""
    return (error.flatten(1).square().sum(-1) + beta**2).sqrt() - beta


@dataclass(frozen=True)
class Potential:
    """w_E |dE|/N + w_F |dF_i| + w_S |dS|: pseudo-Huber norms of the errors, averaged over what is labelled.

    Labels, all NaN where unknown: `energy` (b,) in eV/atom, `stress` (b, 3, 3), site label `forces` (n, 3).
    Weights are per eV/atom, eV/A and eV/A^3; `betas` where the norms turn quadratic, in the same units.
    Forces are trained through second derivatives, so the model has to be twice differentiable and runs in
    full precision. A batch without forces and stresses costs one backward pass only.
    dimers: how many random close pairs a step to push apart (`attraction`), so that none becomes a hole.
    """

    scale: EnergyScale
    label: str = "energy"
    energy_weight: float = 4.0
    forces_weight: float = 1.0
    stress_weight: float = 16.0
    betas: tuple[float, float, float] = (0.01, 0.03, 0.001)
    dimers: int = 0
    dimers_weight: float = 1.0

    def __call__(
        self, model: nn.Module, x: CrystalBatch, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """{"loss", "energy", "forces", "stress"}: scalars; the last three mean absolute errors of entries.

        With gradients and `dimers`, also "dimers": see `attraction`.
        """
        targets = (x.labels.get(self.label), x.site_labels.get("forces"), x.labels.get("stress"))
        with torch.autocast(x.device.type, enabled=False):
            if any(_known(target).any() for target in targets[1:] if target is not None):
                out = derivatives(model, x, self.scale, create_graph=torch.is_grad_enabled())
                found = (out.per_atom, out.forces, out.stress)
            else:
                found = (self.scale.to_physical(model(x).energy), x.frac, x.lattice)
            loss, report = x.frac.new_zeros(()), {}
            if self.dimers and torch.is_grad_enabled():
                holes = attraction(model, self.dimers, self.scale, x.frac, generator)
                loss, report = self.dimers_weight * holes, {"dimers": holes.detach()}
        weights = (self.energy_weight, self.forces_weight, self.stress_weight)
        names = ("energy", "forces", "stress")
        for name, value, target, weight, beta in zip(names, found, targets, weights, self.betas, strict=True):
            if target is None:
                target = torch.full_like(value, torch.nan)
            known = _known(target)
            target = torch.where(known.view(-1, *[1] * (target.dim() - 1)), target, value.detach())
            error = (value - target)[:, None] if value.dim() == 1 else value - target
            count = known.sum().clamp(min=1)
            loss = loss + weight * pseudo_huber(error, beta).sum() / count
            report[name] = error.detach().abs().flatten(1).mean(-1).sum() / count
        return {"loss": loss, **report}


def _known(target: Tensor) -> Tensor:
    """Rows without NaN."""
    return target.isfinite().flatten(1).all(-1) if target.dim() > 1 else target.isfinite()
