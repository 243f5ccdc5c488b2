"""Laws of the Predictor: gradients are gradients, and batching is invisible."""

from __future__ import annotations

import pytest
import torch

from crystalml.crystal import CrystalBatch
from crystalml.errors import UnsupportedError
from crystalml.models.model import CrystalModel
from crystalml.predict import Predictor, pack


@pytest.fixture
def double(tiny_model) -> CrystalModel:
    return tiny_model(dtype=torch.float64)


def crystals(dtype: torch.dtype = torch.float64) -> CrystalBatch:
    g = torch.Generator().manual_seed(1)
    counts = torch.tensor([1, 5, 2, 8])
    n = int(counts.sum())
    lattice = 4.5 * torch.eye(3) + 0.6 * torch.randn(4, 3, 3, generator=g)
    numbers = torch.randint(1, 90, (n,), generator=g)
    return CrystalBatch(numbers, torch.rand(n, 3, generator=g), lattice, counts).to(dtype=dtype)


def total(model: CrystalModel, x: CrystalBatch) -> torch.Tensor:
    with torch.no_grad():
        return model.energy(x) * x.num_atoms


def test_forces_are_minus_the_gradient_in_cartesian_space(double):
    model, x, h = double, crystals(), 1e-5
    forces = Predictor(model)(x)["forces"]
    inverse = torch.linalg.inv(x.lattice)[x.index]
    for atom in range(0, len(x.numbers), 3):
        for axis in range(3):
            step = torch.zeros_like(x.frac)
            step[atom] = h * inverse[atom, axis]  # dF = dX L^-1
            up = total(model, x.replace(frac=x.frac + step)).sum()
            down = total(model, x.replace(frac=x.frac - step)).sum()
            slope = float(up - down) / (2 * h)
            assert -slope == pytest.approx(float(forces[atom, axis]), rel=1e-5, abs=1e-7)


def test_stress_is_the_strain_derivative_over_volume_with_ase_sign(double):
    model, x, h = double, crystals(), 1e-5
    stress = Predictor(model)(x)["stress"]
    for i in range(3):
        for j in range(3):
            strain = torch.zeros(3, 3, dtype=torch.float64)
            strain[i, j] += h / 2
            strain[j, i] += h / 2
            one = torch.eye(3, dtype=torch.float64)
            up, down = (total(model, x.replace(lattice=x.lattice @ (one + s * strain))) for s in (1, -1))
            slope = (up - down) / (2 * h)
            torch.testing.assert_close(slope / x.volume, stress[:, i, j], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(stress, stress.mT)


def test_forces_sum_to_zero_and_rotate_with_the_crystal(double):
    model, x = double, crystals()
    out = Predictor(model)(x)
    sums = torch.zeros(4, 3, dtype=torch.float64).index_add(0, x.index, out["forces"])
    assert sums.abs().max() < 1e-10
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)).double())
    turned = Predictor(model)(x.replace(lattice=x.lattice @ q.T))
    torch.testing.assert_close(turned["forces"], out["forces"] @ q.T, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(turned["stress"], q @ out["stress"] @ q.T, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("max_pairs", [1, 30, 10_000])
def test_splitting_does_not_change_any_result(double, max_pairs):
    model, x = double, crystals()
    whole = Predictor(model, max_pairs=100_000)(x)
    split = Predictor(model, max_pairs=max_pairs)(x)
    for key in whole:
        torch.testing.assert_close(split[key], whole[key], rtol=1e-9, atol=1e-11)
    lone = Predictor(model)(x[2])
    torch.testing.assert_close(lone["energy"], whole["energy"][2:3])
    torch.testing.assert_close(lone["forces"], whole["forces"][6:8])


def test_out_of_memory_halves_the_batch(double, monkeypatch):
    model, x = double, crystals()
    expected = Predictor(model)(x)
    honest, seen = CrystalModel.energy, []

    def crowded(self, batch, t=None):
        seen.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("full")
        return honest(self, batch, t)

    monkeypatch.setattr(CrystalModel, "energy", crowded)
    found = Predictor(model, max_pairs=10_000)(x)
    assert seen[0] == 4 and seen.count(1) == 4
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-9, atol=1e-11)


def test_works_inside_no_grad_and_inference_mode_and_leaves_no_gradient(double):
    model, x = double, crystals()
    expected = Predictor(model)(x)["forces"]
    with torch.no_grad():
        torch.testing.assert_close(Predictor(model)(x)["forces"], expected)
    with torch.inference_mode():
        torch.testing.assert_close(Predictor(model)(x)["forces"], expected)
    assert all(p.grad is None for p in model.parameters())
    assert not expected.requires_grad


def test_single_precision_agrees_and_units_are_per_cell(double, tiny_model):
    x = crystals()
    exact = Predictor(double)(x)
    single = Predictor(tiny_model(dtype=torch.float32))(x)
    assert single["forces"].dtype == torch.float32
    torch.testing.assert_close(single["forces"].double(), exact["forces"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(exact["energy"], exact["energy_per_atom"] * x.num_atoms)
    assert set(Predictor(double)(x, forces=False)) == {"energy", "energy_per_atom"}


@pytest.mark.parametrize("forces", [True, False])
def test_no_crystals_give_empty_results_under_the_same_names(double, tiny_potential, forces):
    for model in (double, tiny_potential()):
        some, none = (Predictor(model)(x, forces) for x in (crystals(), crystals()[[]]))
        assert some.keys() == none.keys()
        for key, value in some.items():
            assert none[key].shape == (0, *value.shape[1:]) and none[key].dtype == value.dtype


def test_totals_of_many_atoms_are_as_good_as_their_parts(tiny_potential):
    """Summed in float32, a thousand atoms are off by some 20 meV."""
    n = 7
    corner = torch.stack(torch.meshgrid(*[torch.arange(n) / n] * 3, indexing="ij"), -1).view(-1, 3)
    x = CrystalBatch(torch.full((n**3,), 29), corner, 2.6 * n * torch.eye(3)[None], torch.tensor([n**3]))
    x = CrystalBatch.cat([x, crystals(torch.float32)])
    for forces in (True, False):
        for max_pairs in (None, 1):
            out = Predictor(tiny_potential(), max_pairs)(x, forces)
            sums = torch.zeros(len(x), dtype=torch.float64).index_add(0, x.index, out["energies"].double())
            torch.testing.assert_close(out["energy"], sums, rtol=1e-14, atol=1e-12)
            torch.testing.assert_close(out["energy_per_atom"], sums / x.num_atoms, rtol=1e-14, atol=1e-12)
            assert out["energies"].dtype == torch.float32


def test_packing_covers_everything_once_within_budget():
    counts = torch.tensor([3, 20, 1, 7, 7, 2, 50])
    groups = pack(counts, 200)
    assert sorted(torch.cat(groups).tolist()) == list(range(7))
    assert all(len(g) == 1 or len(g) * int(counts[g].max()) ** 2 <= 200 for g in groups)


def test_a_model_without_energy_head_is_refused(tiny_model):
    with pytest.raises(UnsupportedError, match="no energy head"):
        Predictor(tiny_model(energy=False))
