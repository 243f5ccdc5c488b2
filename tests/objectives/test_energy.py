from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from crystalml.crystal import CrystalBatch, Tangent
from crystalml.models.heads import EnergyScale
from crystalml.models.model import Outputs
from crystalml.noise.product import CrystalNoise
from crystalml.objectives.energy import IntermediateEnergy, intermediate_energy_loss
from crystalml.testing import rand_crystals

Form = Literal["exp", "poisson"]


@pytest.mark.parametrize("form", ["exp", "poisson"])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_the_minimiser_is_the_log_mean_exponential(form: Form, beta: float) -> None:
    """Two energies reach the same noisy crystal: f must end at -log E[exp(-beta y)]."""
    y = torch.tensor([0.2, 1.4], dtype=torch.float64)
    f = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([f], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = intermediate_energy_loss(f.expand(2), y, beta, form).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)
    expected = -torch.exp(-beta * y).mean().log()
    torch.testing.assert_close(f.detach(), expected, atol=1e-4, rtol=0)


def test_extreme_predictions_give_finite_losses_and_live_gradients() -> None:
    f = torch.tensor([-80.0, 0.0, 80.0], requires_grad=True)
    loss = intermediate_energy_loss(f, torch.ones(3), 1.0, "exp")
    (gradient,) = torch.autograd.grad(loss.sum(), f)
    assert loss.isfinite().all() and gradient.isfinite().all()
    assert gradient[0] < 0  # too low an energy is still pushed up beyond the clamp


class Constant(nn.Module):
    """Predicts one energy and records the noise levels it was asked at."""

    def __init__(self, energy: float) -> None:
        super().__init__()
        self.energy, self.times = energy, torch.empty(0)

    def forward(self, x: CrystalBatch, t: Tensor) -> Outputs:
        self.times = t
        noise = Tangent(lattice=torch.zeros_like(x.lattice), frac=torch.zeros_like(x.frac))
        return Outputs(None, noise, x.lattice.new_full((len(x),), self.energy))  # type: ignore[arg-type]


def _labelled(energies: list[float], off: list[float] | None = None) -> CrystalBatch:
    x = rand_crystals(0, len(energies))
    labels = {"energy": torch.tensor(energies, dtype=x.dtype)}
    if off is not None:
        labels["off_equilibrium"] = torch.tensor(off)
    return x.replace(labels=labels)


def test_clean_crystals_are_judged_by_absolute_error_in_physical_units() -> None:
    scale = EnergyScale(-4.0, 2.0)
    objective = IntermediateEnergy(CrystalNoise.diffcsp(10), scale, clean=1.0)
    model = Constant(1.5)  # -1 eV/atom
    losses = objective(model, _labelled([-1.0, 0.0, float("nan")]), generator=torch.Generator())
    assert (model.times == 0).all()
    assert losses["clean_mae"].item() == pytest.approx(0.5)
    assert losses["energy"].item() == pytest.approx(0.25)
    assert losses["lattice"] == 0 and losses["frac"] == 0  # nothing was noised


def test_unlabelled_crystals_train_the_noise_heads_alone() -> None:
    objective = IntermediateEnergy(CrystalNoise.diffcsp(10), EnergyScale(), clean=0.0)
    losses = objective(Constant(0.3), _labelled([float("nan")] * 50), generator=torch.Generator())
    assert losses["energy"] == 0 and losses["lattice"] > 0.5 and losses["loss"].isfinite()


def test_off_equilibrium_frames_are_never_noised() -> None:
    objective = IntermediateEnergy(CrystalNoise.diffcsp(10), EnergyScale(), clean=0.0)
    model = Constant(0.0)
    objective(model, _labelled([0.0] * 6, [1.0, 0.0] * 3), generator=torch.Generator())
    assert (model.times[::2] == 0).all() and (model.times[1::2] > 0).all()
