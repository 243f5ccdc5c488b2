"""The objective of a potential: energies, forces and stresses at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.models.derivatives import CompiledPotential, derivatives, energies
from crystalml.models.heads import EnergyScale
from crystalml.models.model import CrystalModel
from crystalml.objectives.dimers import attraction, random_dimers
from crystalml.objectives.moduli import bulk_and_shear, disturbed, elastic_tensor, misfit, random_strains

_SHARE = 0.1  # relative error of a modulus below which the norm turns quadratic


def pseudo_huber(error: Tensor, beta: float) -> Tensor:
    """sqrt(|d|^2 + beta^2) - beta over all axes but the first: |d| far out, smooth and quadratic near 0."""
    return (error.flatten(1).square().sum(-1) + beta**2).sqrt() - beta


@dataclass(frozen=True)
class Potential:
    """w_E |dE|/N + w_F |dF_i| + w_S |dS|: pseudo-Huber norms of the errors, averaged over what is labelled.

    Labels, all NaN where unknown: `energy` (b,) in eV/atom, `stress` (b, 3, 3), site label `forces` (n, 3).
    Weights are per eV/atom, eV/A and eV/A^3; `betas` where the norms turn quadratic, in the same units.
    Forces are trained through second derivatives, so the model has to be twice differentiable and runs in
    full precision. A batch without forces and stresses costs one backward pass only, a third.
    dimers: how many random close pairs to push apart (`attraction`) beside a batch with forces, so that none
    becomes a hole. moduli: crystals with known moduli (`moduli_data`), of which each such batch takes
    `moduli_count` along, strained; their shares of error are pseudo-Huber, too. compiled: to train through,
    None for autograd.
    """

    scale: EnergyScale
    label: str = "energy"
    energy_weight: float = 8.0
    forces_weight: float = 1.0
    stress_weight: float = 16.0
    betas: tuple[float, float, float] = (0.01, 0.03, 0.001)
    dimers: int = 0
    dimers_weight: float = 1.0
    moduli: CrystalBatch | None = None
    moduli_count: int = 1
    moduli_weight: float = 0.5
    compiled: CompiledPotential | None = None

    def __call__(
        self, model: CrystalModel, x: CrystalBatch, *, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """{"loss", "energy", "forces", "stress"}: scalars; the last three mean absolute errors of entries,
        of what is labelled. With gradients and `dimers`, also "dimers": see `attraction`; with `moduli`,
        "moduli": mean share of their errors. A batch without known labels costs nothing: loss 0.
        """
        targets = (x.labels.get(self.label), x.site_labels.get("forces"), x.labels.get("stress"))
        some = [target is not None and bool(known_rows(target).any()) for target in targets]
        if not any(some):  # a leaf of its own: a step on it leaves every weight as it is
            return {"loss": x.frac.new_zeros((), requires_grad=torch.is_grad_enabled())}
        loss = x.frac.new_zeros(())
        report: dict[str, Tensor] = {}
        with torch.autocast(x.device.type, enabled=False):
            if any(some[1:]):
                found, loss, report = self._derivatives(model, x, generator)
            else:
                compiled = self.compiled if torch.is_grad_enabled() else None
                found = (energies(model, x, compiled), x.frac, x.lattice)
        weights = (self.energy_weight, self.forces_weight, self.stress_weight)
        names = ("energy", "forces", "stress")
        for name, value, target, weight, beta in zip(names, found, targets, weights, self.betas, strict=True):
            if target is None or not (known := known_rows(target)).any():
                continue
            target = torch.where(known.view(-1, *[1] * (target.dim() - 1)), target, value.detach())
            error = (value - target)[:, None] if value.dim() == 1 else value - target
            count = known.sum()
            loss = loss + weight * pseudo_huber(error, beta).sum() / count
            report[name] = error.detach().abs().flatten(1).mean(-1).sum() / count
        return {"loss": loss, **report}

    def _derivatives(
        self, model: CrystalModel, x: CrystalBatch, generator: torch.Generator | None
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, dict[str, Tensor]]:
        """Energies, forces and stresses of x; while training, also the loss of what travels in its batch.

        Random close pairs and strained crystals do: evaluations of their own would cost a third more.
        """
        learn = torch.is_grad_enabled()
        elastic = self._some_moduli(x, generator) if learn else None
        parts = [x]
        if learn and self.dimers:
            parts.append(random_dimers(self.dimers, x.frac, generator))
        if elastic is not None:
            parts.append(disturbed(*elastic))
        together = CrystalBatch.cat(parts) if len(parts) > 1 else x
        out = derivatives(model, together, create_graph=learn, compiled=self.compiled if learn else None)
        forces = out.forces.split([len(part.numbers) for part in parts])
        stress = out.stress.split([len(part) for part in parts])
        loss = x.frac.new_zeros(())
        report: dict[str, Tensor] = {}
        if learn and self.dimers:
            holes = attraction(forces[1])
            loss, report["dimers"] = self.dimers_weight * holes, holes.detach()
        if elastic is not None:
            bulk, shear = bulk_and_shear(elastic_tensor(*elastic, forces[-1], stress[-1]))
            true = elastic[0].labels
            error = torch.cat([misfit(bulk, true["bulk_modulus"]), misfit(shear, true["shear_modulus"])])
            loss = loss + self.moduli_weight * pseudo_huber(error[:, None], _SHARE).mean()
            report["moduli"] = error.detach().abs().mean()
        return (out.per_atom[: len(x)], forces[0], stress[0]), loss, report

    def _some_moduli(
        self, x: CrystalBatch, generator: torch.Generator | None
    ) -> tuple[CrystalBatch, Tensor] | None:
        """Crystals with moduli, and how far to strain each."""
        if self.moduli is None:
            return None
        ids = torch.randint(len(self.moduli), (self.moduli_count,), generator=generator, device=x.device)
        chosen = self.moduli[ids.to(self.moduli.device)].to(x.device, x.dtype)
        return chosen, random_strains(chosen, generator)


def known_rows(target: Tensor) -> Tensor:
    """(rows,) whether all of a row of labels is known: finite."""
    return target.isfinite().flatten(1).all(-1) if target.dim() > 1 else target.isfinite()
