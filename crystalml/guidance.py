"""Guidance: gradients that bend a sampler's path."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch, Tangent
from crystalml.errors import UnsupportedError
from crystalml.models.model import CrystalModel


def check_noise(energy_model: CrystalModel, denoiser: CrystalModel) -> None:
    """Refuse an intermediate energy that was learned on another noise: its levels mean something else."""
    theirs, ours = energy_model.config.process, denoiser.config.process
    if energy_model.has_noise and theirs != ours:
        raise UnsupportedError(
            f"the energy model was trained on the noise of {theirs}, the generator on that of {ours}: "
            "guide it by an energy trained on the same, or not at all (guidance=0)"
        )


@dataclass(frozen=True)
class EnergyGuidance:
    """scale x gradient of DAO-P's intermediate energy f(M_t, t) (DAO, Eq. 11 and Algorithm 1).

    p_t is proportional to q_t exp(-f), so the score gains -grad f; the paper multiplies by beta once more,
    equal only at beta = 1. scale = 0 is the unguided sampler, bit for bit. Gradients of a crystal whose
    norm exceeds `clip` are shortened to it: at high noise f is steep and one step must not fling atoms.
    """

    model: CrystalModel
    scale: float
    clip: float = 100.0

    def __call__(self, x: CrystalBatch, t: Tensor) -> Tangent:
        if self.scale == 0:
            return Tangent()
        frac, lattice = x.frac.detach().requires_grad_(), x.lattice.detach().requires_grad_()
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            f = self.model.free_energy(x.replace(frac=frac, lattice=lattice), t)
            g_f, g_l = torch.autograd.grad(f.sum(), (frac, lattice))
        return Tangent(lattice=self.scale * self._clipped(g_l, x), frac=self.scale * self._clipped(g_f, x))

    def _clipped(self, gradient: Tensor, x: CrystalBatch) -> Tensor:
        if gradient.dim() == 3:
            norm = gradient.norm(dim=(-1, -2))
            shrink = (self.clip / norm.clamp(min=1e-12)).clamp(max=1)
            return torch.nan_to_num(gradient * shrink[:, None, None])
        square = gradient.new_zeros(len(x)).index_add(0, x.index, gradient.square().sum(-1))
        shrink = (self.clip / square.sqrt().clamp(min=1e-12)).clamp(max=1)
        return torch.nan_to_num(gradient * shrink[x.index][:, None])
