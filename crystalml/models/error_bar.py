"""The error bar of an energy, read from the features that the last linear layer reads."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from crystalml.errors import InputError

if TYPE_CHECKING:
    from crystalml.models.model import CrystalModel

LEVELS = (0.68, 0.9, 0.95)


class ErrorBar(nn.Module):
    """eps_p = q_p exp(clip(w.z + w_0)) sqrt(1 + kappa z^T C^-1 z / d), z = mean_i phi_i - mu, in eV/atom.

    phi_i: the features (d,) of atom i before the head's last linear layer, mu and C their mean and covariance
    over the calibration set. The first factor is the size of errors expected of features such as these, a
    second read-out of the layer that reads the energy; the root grows with the distance from all that was
    seen, the variance of a Bayesian last layer (Bigi et al., Mach. Learn.: Sci. Technol. 5, 045018 (2024)).
    q_p makes the interval E +- eps_p hold a share p of the calibration set (split conformal prediction,
    Vovk et al., Algorithmic Learning in a Random World (2005)); scaled so that q = 1 at p = 0.68.

    The mean over atoms makes eps per atom the same for a crystal and its supercells.
    """

    mean: Tensor
    slope: Tensor
    whiten: Tensor
    offset: Tensor
    bounds: Tensor
    factors: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("slope", torch.zeros(dim))  # w
        self.register_buffer("whiten", torch.zeros(dim, dim))  # R with |z R|^2 = kappa z^T C^-1 z / d
        self.register_buffer("offset", torch.zeros(()))  # w_0 + log q_0.68
        self.register_buffer("bounds", torch.tensor([-torch.inf, torch.inf]))  # of w.z + offset
        self.register_buffer("factors", torch.ones(len(LEVELS)))  # q_p / q_0.68

    def forward(self, features: Tensor) -> Tensor:
        """(b, d) mean features of the crystals -> (b,) half-widths at 68 %, eV/atom."""
        z = features.detach() - self.mean
        size = torch.clamp(z @ self.slope + self.offset, self.bounds[0], self.bounds[1])
        return size.exp() * (1 + (z @ self.whiten).square().sum(-1)).sqrt()

    def factor(self, level: float) -> float:
        """What the 68 % error bar is multiplied with for another level: 0.68, 0.9 or 0.95."""
        if level not in LEVELS:
            raise InputError(f"error bars are calibrated at {', '.join(map(str, LEVELS))}, not at {level!r}")
        return float(self.factors[LEVELS.index(level)])


def with_error_bar(model: CrystalModel, error_bar: ErrorBar | None) -> CrystalModel:
    """A copy of a potential with this error bar, or with None without one; the other weights are the same."""
    weight = next(model.parameters())
    other = dataclasses.replace(model.config, error_bar=error_bar is not None).build()
    other.to(weight.device, weight.dtype)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("error_bar.")}
    if error_bar is not None:
        state |= {f"error_bar.{name}": value for name, value in error_bar.state_dict().items()}
    other.load_state_dict(state)
    other.card = dict(model.card)
    return other.train(model.training)
