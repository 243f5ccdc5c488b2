"""Energies, forces and stresses at once: right values, masked labels, and a potential that learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.datasets.packed import PackedDataset, SizeBatches
from crystalml.models.derivatives import derivatives
from crystalml.models.heads import EnergyScale
from crystalml.models.model import CrystalModel, ModelConfig
from crystalml.models.periodic import PeriodicConfig
from crystalml.objectives import moduli
from crystalml.objectives.moduli import bulk_and_shear, disturbed, elastic_tensor, misfit
from crystalml.objectives.potential import Potential, pseudo_huber
from crystalml.predict import Predictor
from crystalml.testing import rand_crystals
from crystalml.training.fit import FitConfig, fit
from crystalml.training.references import fit_shift

SCALE = EnergyScale(-1.0, 2.0)
CONFIG = PeriodicConfig(16, 1, 2, 4, 8, 8, 8, 5.0)


def _model(dtype: torch.dtype = torch.float64, noise: float = 0.1) -> CrystalModel:
    torch.manual_seed(0)
    model = ModelConfig(CONFIG, noise=False, energy=SCALE).build().to(dtype)
    with torch.no_grad():
        for weight in model.parameters():
            weight += noise * torch.randn_like(weight)
    return model


def _labelled(x: CrystalBatch, model: CrystalModel) -> CrystalBatch:
    out = Predictor(model)(x)
    model.train()
    labels = {"energy": out["energy_per_atom"], "stress": out["stress"]}
    return x.replace(labels=labels, site_labels={"forces": out["forces"]})


def test_loss_vanishes_at_the_labels_and_reports_absolute_errors() -> None:
    model = _model()
    x = _labelled(rand_crystals(0, 4, min_distance=1.8), model)
    losses = Potential(SCALE)(model, x)
    assert all(abs(float(value)) < 1e-12 for value in losses.values())
    shifted = x.replace(labels={**x.labels, "energy": x.labels["energy"] + 0.5})
    assert float(Potential(SCALE)(model, shifted)["energy"]) == pytest.approx(0.5)


def test_crystals_without_a_label_count_for_nothing() -> None:
    model = _model()
    x = _labelled(rand_crystals(0, 4, min_distance=1.8), model)
    wrong = {"energy": x.labels["energy"] + 0.3, "stress": x.labels["stress"] + 0.01}
    x = x.replace(labels=wrong, site_labels={"forces": x.site_labels["forces"] + 0.1})
    known = torch.tensor([True, False, True, False])

    def hide(values: Tensor, rows: Tensor) -> Tensor:
        return torch.where(rows.view(-1, *[1] * (values.dim() - 1)), values, torch.nan)

    masked = x.replace(
        labels={name: hide(value, known) for name, value in x.labels.items()},
        site_labels={"forces": hide(x.site_labels["forces"], known[x.index])},
    )
    everywhere, part = Potential(SCALE)(model, masked), Potential(SCALE)(model, x[[0, 2]])
    for name, value in part.items():
        torch.testing.assert_close(everywhere[name], value)
    everywhere["loss"].backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]  # the first block has no vectors yet
    assert len(grads) > 20 and all(grad.isfinite().all() for grad in grads)


def test_a_batch_without_a_known_label_leaves_the_weights_alone() -> None:
    model, x = _model(), rand_crystals(0, 3, min_distance=1.8)
    unknown = {
        "energy": torch.full((3,), torch.nan).double(),
        "stress": torch.full((3, 3, 3), torch.nan).double(),
    }
    for labels in ({}, unknown):
        losses = Potential(SCALE, dimers=2)(model, x.replace(labels=labels))
        losses["loss"].backward()
        assert losses.keys() == {"loss"} and losses["loss"] == 0
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    with torch.no_grad():
        assert not Potential(SCALE)(model, x)["loss"].requires_grad


def test_energies_alone_need_no_forces() -> None:
    model, x = _model(), rand_crystals(0, 3, min_distance=1.8)
    x = x.replace(labels={"energy": torch.zeros(3).double()})
    losses = Potential(SCALE)(model, x)
    losses["loss"].backward()
    assert losses["energy"] > 0 and losses.keys() == {"loss", "energy"}


def test_forces_are_measured_where_nothing_is_differentiated() -> None:
    model = _model()
    x = _labelled(rand_crystals(0, 3, min_distance=1.8), model)
    with torch.no_grad():
        losses = Potential(SCALE)(model, x)
    assert not losses["loss"].requires_grad and losses["forces"] < 1e-12


def test_weight_gradients_of_the_force_error_are_exact() -> None:
    model = _model()
    x = _labelled(rand_crystals(0, 2, max_atoms=3, min_distance=1.8), model)
    error = torch.randn(x.frac.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    x = x.replace(site_labels={"forces": x.site_labels["forces"] + 0.2 * error})
    objective = Potential(SCALE, energy_weight=0.0, stress_weight=0.0)
    weight = model.encoder.blocks[0].filter.weight  # type: ignore[union-attr, index]
    objective(model, x)["loss"].backward()
    assert weight.grad is not None
    direction = torch.randn(weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(0))
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            weight += step * direction
        values.append(float(objective(model, x)["loss"]))
        with torch.no_grad():
            weight -= step * direction
    slope = float((weight.grad * direction).sum())
    assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


def _silicon(bulk: float, shear: float) -> CrystalBatch:
    a = 5.43
    return CrystalBatch(
        torch.tensor([14, 14]), torch.tensor([[0.0] * 3, [0.25] * 3]).double(),
        a / 2 * (1 - torch.eye(3).double())[None], torch.tensor([2]),
        {"bulk_modulus": torch.tensor([bulk]).double(), "shear_modulus": torch.tensor([shear]).double()},
        {"response": torch.zeros(2, 6, 3).double()},
    )  # fmt: skip


def test_strained_crystals_travel_in_the_batch_of_the_others(monkeypatch) -> None:
    """Their loss is that of the moduli by themselves; where nothing is learned they stay away."""
    model, generator = _model(), torch.Generator().manual_seed(0)
    x = _labelled(rand_crystals(0, 3, min_distance=1.8), model)
    cubic = _silicon(90.0, 60.0)
    monkeypatch.setattr(moduli, "STRAINS", (0.01, 0.01))
    strain = torch.tensor([0.01]).double()
    out = derivatives(model, disturbed(cubic, strain))
    found = torch.cat(bulk_and_shear(elastic_tensor(cubic, strain, out.forces, out.stress)))
    share = misfit(found, torch.tensor([90.0, 60.0]).double())
    objective = Potential(SCALE, dimers=2, moduli=cubic, moduli_count=2)
    losses = objective(model, x, generator=generator)
    expected = 0.5 * pseudo_huber(share[:, None], 0.1).mean() + losses["dimers"]
    assert losses["moduli"] > 0.1 and losses["moduli"] == pytest.approx(float(share.abs().mean()))
    assert float(losses["loss"].detach()) == pytest.approx(float(expected.detach()))
    with torch.no_grad():
        assert objective(model, x).keys() == {"loss", "energy", "forces", "stress"}


def test_a_potential_learns_moduli() -> None:
    model, generator = _model(noise=0.0), torch.Generator().manual_seed(0)
    x = _labelled(rand_crystals(0, 2, max_atoms=2, min_distance=1.8), model)
    objective = Potential(SCALE, moduli=_silicon(90.0, 60.0), moduli_count=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    shares = []
    for _ in range(60):
        optimizer.zero_grad()
        losses = objective(model, x, generator=generator)
        losses["loss"].backward()
        optimizer.step()
        shares.append(float(losses["moduli"]))
    assert shares[0] > 0.5 and max(shares[-5:]) < 0.3 * shares[0]


def test_pseudo_huber_is_a_norm_far_out_and_a_square_near_zero() -> None:
    d = torch.tensor([[3.0, 4.0], [3e-4, 4e-4], [0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([5.0 - 0.01, 0.5 * 25e-8 / 0.01, 0.0], dtype=torch.float64)
    torch.testing.assert_close(pseudo_huber(d, 0.01), expected, rtol=2e-3, atol=1e-12)


def lennard_jones(count: int, seed: int = 0) -> PackedDataset:
    """Argon-like crystals around their equilibrium with ASE's energies, forces and stresses."""
    from ase import Atoms
    from ase.calculators.lj import LennardJones

    rng = np.random.default_rng(seed)
    parts, energy, forces, stress = [], [], [], []
    calculator = LennardJones(sigma=2.6, epsilon=0.2, rc=5.0, smooth=True)
    while len(parts) < count:
        cell = 4.1 * (np.eye(3) + 0.06 * rng.normal(size=(3, 3)))
        frac = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]) + 0.03 * rng.normal(
            size=(4, 3)
        )
        atoms = Atoms("Ar4", cell=cell, scaled_positions=frac, pbc=True, calculator=calculator)
        if np.abs(atoms.get_forces()).max() < 3:
            parts.append(atoms)
            energy.append(atoms.get_potential_energy() / 4)
            forces.append(atoms.get_forces())
            stress.append(atoms.get_stress(voigt=False))
    return PackedDataset.from_arrays(
        np.concatenate([a.numbers for a in parts]), np.concatenate([a.get_scaled_positions() for a in parts]),
        np.stack([a.cell.array for a in parts]), np.full(count, 4),
        {"energy": np.array(energy), "stress": np.stack(stress)}, {"forces": np.concatenate(forces)},
    )  # fmt: skip


def test_a_small_potential_learns_lennard_jones() -> None:
    data, val = lennard_jones(48), lennard_jones(16, seed=1)[torch.arange(16)]
    torch.manual_seed(0)
    model = ModelConfig(replace(CONFIG, dim=32), noise=False, energy=EnergyScale()).build()
    fit_shift(model, data)
    objective = Potential(EnergyScale())
    before = {name: float(value) for name, value in objective(model, val).items()}
    batches = SizeBatches(data.num_atoms, budget=8 * 4 * 60, neighbors=torch.full((48,), 60.0))
    *_, (run, _) = fit(model, objective, data, batches, FitConfig(steps=200, lr=5e-3, ema=0.95))
    with run.ema.applied(model):
        after = {name: float(value) for name, value in objective(model, val).items()}
    assert after["forces"] < 0.2 * before["forces"]
    assert after["energy"] < 0.3 * before["energy"] and after["stress"] < 0.3 * before["stress"]


def test_shifts_start_at_the_least_squares_fit() -> None:
    data = lennard_jones(4)
    labels = {"energy": torch.tensor([1.0, 2.0, 3.0, torch.nan])}
    data = replace(data, labels=labels)
    model = _model(torch.float32)
    error = fit_shift(model, data, ridge=1e-9)
    assert error == pytest.approx(2 / 3 / SCALE.std, rel=1e-3)
    shift = model.energy_head.shift  # type: ignore[union-attr]
    assert float(SCALE.to_physical(shift[18])) == pytest.approx(2.0, rel=1e-4)
    assert (shift[:18] == 0).all()
