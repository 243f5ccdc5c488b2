from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from crystalml.crystal import CrystalBatch, Tangent
from crystalml.geometry import lie
from crystalml.geometry.assignment import nearest_way
from crystalml.geometry.torus import logmap, remove_mean
from crystalml.models.model import Outputs
from crystalml.noise.product import CrystalNoise
from crystalml.objectives.reconstruction import Reconstruction
from crystalml.testing import alpha_quartz, fcc, hexagonal, perovskite, rand_crystals, rock_salt

Loss = Literal["k", "params"]
Metric = Literal["cart", "frac"]


class Oracle(nn.Module):
    """Knows the clean crystals and says them, moved by `shift`."""

    def __init__(self, x: CrystalBatch, shift: float = 0.0) -> None:
        super().__init__()
        self.x, self.shift = x, nn.Parameter(torch.tensor(shift, dtype=x.dtype))

    def forward(self, noisy: CrystalBatch, t: Tensor) -> Outputs:
        log = lie.polar(self.x.lattice)[0].to(noisy.dtype) + self.shift * torch.eye(3, dtype=noisy.dtype)
        back = logmap(self.x.frac - noisy.frac)
        mean = torch.zeros(len(self.x), 3, dtype=back.dtype).index_add(0, self.x.index, back)
        back = back - (mean / self.x.num_atoms[:, None])[self.x.index]
        return Outputs(None, Tangent(lattice=log, frac=back + self.shift), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["k", "params"])
def test_the_truth_costs_nothing_and_a_shift_does(loss: Loss) -> None:
    x = rand_crystals(0, 6)
    objective = Reconstruction(CrystalNoise.gemsdiff(20), loss, "frac")
    right = objective(Oracle(x), x, generator=torch.Generator().manual_seed(0))
    assert right["loss"] < 1e-12
    wrong = objective(Oracle(x, 0.1), x, generator=torch.Generator().manual_seed(0))
    assert wrong["lattice"] > 1e-3
    assert wrong["frac"].item() == pytest.approx(0.01, rel=1e-6)


def test_cartesian_errors_are_in_angstrom_on_the_clean_cell() -> None:
    x = fcc().replace(lattice=4 * torch.eye(3, dtype=torch.float64)[None])
    objective = Reconstruction(CrystalNoise.gemsdiff(20))
    zero = torch.zeros(1, 3, dtype=torch.float64)
    assert objective.frac_error(zero + 0.1, zero, x).item() == pytest.approx(0.4)


def test_the_cartesian_target_is_the_shortest_way_in_space() -> None:
    """In a sheared cell the nearest image is not the one of the smallest coordinates."""
    x = hexagonal()
    objective = Reconstruction(CrystalNoise.gemsdiff(20))
    back = torch.tensor([[0.45, 0.4, 0.0], [-0.45, -0.4, 0.0]], dtype=torch.float64)
    assert objective.frac_error(back, back, x) < 1e-12  # gamma = 120: (0.45, 0.4) is short as it is
    sheared = x.replace(lattice=x.lattice * torch.tensor([-1.0, 1, 1], dtype=torch.float64)[:, None])
    other = torch.tensor([[-0.55, 0.4, 0.0], [0.55, -0.4, 0.0]], dtype=torch.float64)
    assert objective.frac_error(other, back, sheared) < 1e-12  # gamma = 60: one cell less along a
    assert objective.frac_error(back, back, sheared) > 0.1


@pytest.mark.parametrize("crystal", [fcc, rock_salt, perovskite, hexagonal])
@pytest.mark.parametrize("loss", ["k", "params"])
def test_gradients_are_finite_for_cells_with_equal_eigenvalues(crystal, loss: Loss) -> None:  # type: ignore[no-untyped-def]
    objective, x = Reconstruction(CrystalNoise.gemsdiff(20), loss), crystal()
    target = lie.polar(x.lattice)[0]
    for start in (target, target + 0.1 * lie.basis()[3], lie.polar(torch.eye(3)[None])[0]):
        out = start.clone().requires_grad_()
        (slope,) = torch.autograd.grad(objective.lattice_error(out, target + 0.05 * lie.basis()[8]), out)
        assert slope.isfinite().all() and slope.abs().max() > 0


def test_params_loss_does_not_see_how_the_cell_is_turned_but_sees_its_shape() -> None:
    objective, x = Reconstruction(CrystalNoise.gemsdiff(20), "params"), rand_crystals(1, 4)
    target = lie.polar(x.lattice)[0]
    assert objective.lattice_error(target, target) < 1e-12
    sheared = objective.lattice_error(target + 0.1 * lie.basis()[4], target)
    blown = objective.lattice_error(target + 0.1 * lie.basis()[8], target)
    assert sheared > 0.01 and blown > 0.01


def test_a_predicted_cell_is_learned_from_the_same_loss() -> None:
    x = rand_crystals(2, 5)
    objective = Reconstruction(CrystalNoise.gemsdiff(20, lattice_mode="predict"), metric="frac")
    assert objective(Oracle(x), x, generator=torch.Generator().manual_seed(0))["loss"] < 1e-12


def test_equal_atoms_have_no_names() -> None:
    """Who came from where no network can know; with `exchange` one that says the nearest way pays nothing."""
    one = alpha_quartz()
    order = torch.cat([(one.numbers == z).nonzero()[:, 0].roll(1) for z in one.numbers[[0, -1]]])
    assert (one.numbers[order] == one.numbers).all()
    x, renamed = (CrystalBatch.cat(8 * [one.replace(frac=f)]) for f in (one.frac, one.frac[order]))

    class Namer(nn.Module):
        def forward(self, noisy: CrystalBatch, t: Tensor) -> Outputs:
            way = nearest_way(renamed, noisy.frac)
            way = remove_mean(way, x.index, x.num_atoms)
            return Outputs(None, Tangent(lattice=lie.polar(x.lattice)[0], frac=way), None)  # type: ignore[arg-type]

    def loss(exchange: bool) -> float:
        objective = Reconstruction(CrystalNoise.gemsdiff(), metric="frac", exchange=exchange)
        return float(objective(Namer(), x, generator=torch.Generator().manual_seed(1))["frac"])

    assert loss(True) < 1e-9
    assert loss(False) > 1e-2
