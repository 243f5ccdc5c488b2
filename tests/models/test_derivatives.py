"""Forces and stresses through pair vectors are those by positions and strains, compiled or not."""

import pytest
import torch

from crystalml.crystal import CrystalBatch
from crystalml.errors import UnsupportedError
from crystalml.models.cspnet import CSPNetConfig
from crystalml.models.derivatives import CompiledPotential, derivatives, energies
from crystalml.models.heads import EnergyScale
from crystalml.models.model import CrystalModel, ModelConfig
from crystalml.models.periodic import PeriodicConfig
from crystalml.testing import rand_crystals


@pytest.fixture
def model() -> CrystalModel:
    torch.manual_seed(0)
    scale = EnergyScale(-1.0, 2.0)
    model = ModelConfig(PeriodicConfig(8, 1, 2, 4, 4, 4, 4, 5.0), noise=False, energy=scale).build().double()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)  # type: ignore[misc]
    return model


def by_strain(model: CrystalModel, x: CrystalBatch) -> tuple[torch.Tensor, ...]:
    """E, -dE/dX, sym(dE/d eps) / V at L -> L (1 + eps), X -> X (1 + eps), by the whole forward pass."""
    move = torch.zeros_like(x.frac, requires_grad=True)
    strain = torch.zeros_like(x.lattice, requires_grad=True)
    frac = x.frac + torch.einsum("ni,nij->nj", move, torch.linalg.inv(x.lattice)[x.index])
    per_atom = model.energy(x.replace(frac=frac, lattice=x.lattice + x.lattice @ strain))
    slope, virial = torch.autograd.grad((per_atom * x.num_atoms).sum(), (move, strain))
    return per_atom, -slope, (virial + virial.mT) / (2 * x.volume[:, None, None])


def test_derivatives_by_pairs_are_those_by_positions_and_strain(model: CrystalModel) -> None:
    x = rand_crystals(0, 4, min_distance=1.5)
    out = derivatives(model, x)
    for found, expected in zip((out.per_atom, out.forces, out.stress), by_strain(model, x), strict=True):
        torch.testing.assert_close(found, expected)
    totals = out.energies.new_zeros(len(x)).index_add(0, x.index, out.energies)
    torch.testing.assert_close(totals / x.num_atoms, out.per_atom)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_caller_without_gradients_gets_forces(model: CrystalModel, mode) -> None:  # type: ignore[no-untyped-def]
    x = rand_crystals(0, 2, min_distance=1.5)
    expected = derivatives(model, x)
    with mode():
        found = derivatives(model, rand_crystals(0, 2, min_distance=1.5))
    torch.testing.assert_close(found.forces, expected.forces)


def test_compiled_potentials_train_the_weights_alike(model: CrystalModel, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda graph, dynamic: compiler(graph, backend="aot_eager", dynamic=dynamic)
    )
    fast = CompiledPotential(model)
    for atoms, count in ((11, 3), (23, 4)):  # other sizes, the same graph
        x, grads = rand_crystals(count, count, min_distance=1.5), []
        assert len(x.numbers) == atoms
        for compiled in (None, fast):
            out = derivatives(model, x, create_graph=True, compiled=compiled)
            plain = energies(model, x, compiled)
            torch.testing.assert_close(plain, out.per_atom)
            loss = (
                plain.square().sum()
                + out.per_atom.square().sum()
                + out.forces.square().sum()
                + out.stress.square().sum()
            )
            grads.append(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))
        for slow, quick in zip(*grads, strict=True):
            assert (slow is None or not slow.any()) if quick is None else slow is not None
            if slow is not None and quick is not None:
                torch.testing.assert_close(quick, slow, rtol=1e-8, atol=1e-10)


def test_models_that_are_no_potentials_are_refused() -> None:
    model = ModelConfig(CSPNetConfig(16, 1, 4, 8, "log"), energy=EnergyScale()).build()
    with pytest.raises(UnsupportedError, match="potential"):
        derivatives(model, rand_crystals(0, 1, dtype=torch.float32))
