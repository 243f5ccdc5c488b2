"""The batch goes where each crystal would have gone alone, which is where ASE goes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE, LBFGS
from torch import Tensor

from crystalml.convert import to_atoms
from crystalml.crystal import CrystalBatch
from crystalml.errors import CellError, InputError, NonFiniteError, UnsupportedError
from crystalml.relaxation.batch import BatchRelaxer, Relaxed, relax_batch
from crystalml.relaxation.coordinates import Vector, begin
from crystalml.relaxation.lbfgs import Lbfgs
from crystalml.relaxation.settings import OPTIMIZERS, RelaxSettings
from crystalml.testing import assert_close_crystals, rand_crystals, rock_salt

both = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def asked(optimizer: str, fmax: float, **more: object) -> RelaxSettings:
    return RelaxSettings(fmax=fmax, optimizer=optimizer, **{"max_steps": 3000, **more})  # type: ignore[arg-type]


def same(first: Relaxed, second: Relaxed, atol: float = 1e-8) -> None:
    assert (first.steps, first.converged) == (second.steps, second.converged)
    assert first.energy == pytest.approx(second.energy, abs=atol)
    assert_close_crystals(first.crystal, second.crystal, atol)


# --- the same as ASE --------------------------------------------------------------------------------------
def test_every_step_of_fire_is_that_of_ase(toys):
    crystals = toys.start(3)
    found = relax_batch(toys.Pairs(), crystals, asked("fire", 1e-3, cell=False))
    for crystal, result in zip(crystals.split(), found, strict=True):
        atoms = to_atoms(crystal)[0]
        atoms.calc = toys.OneByOne()
        run = FIRE(atoms, logfile=None)
        run.run(1e-3, 3000)
        assert result.converged and result.steps == run.nsteps
        assert result.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-8)


@both
@pytest.mark.parametrize("cell", [False, True])
def test_the_minimum_is_that_of_ase(toys, minima, optimizer, cell):
    crystals = toys.shaken(minima)
    found = relax_batch(toys.Pairs(), crystals, asked(optimizer, 1e-3, cell=cell))
    for crystal, result in zip(crystals.split(), found, strict=True):
        atoms = to_atoms(crystal)[0]
        atoms.calc = toys.OneByOne()
        LBFGS(FrechetCellFilter(atoms) if cell else atoms, logfile=None).run(1e-3, 3000)
        assert result.converged and result.fmax <= 1e-3 and (result.steps > 0 or not cell)
        assert result.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
        assert float(result.crystal.volume) == pytest.approx(atoms.get_volume(), rel=1e-3)
        out = toys.Pairs()(result.crystal)
        assert float(out["forces"].norm(dim=1).max()) <= 1e-3 + 1e-9
        assert not cell or float(out["stress"].abs().max()) < 1e-3


@both
def test_a_known_minimum_is_found(toys, optimizer):
    for result in relax_batch(toys.Springs(), toys.start(), asked(optimizer, 1e-6)):
        assert result.converged and result.energy < 1e-9 and result.steps > 0
        torch.testing.assert_close(
            result.crystal.frac, torch.full_like(result.crystal.frac, 0.5), atol=1e-5, rtol=0
        )


def test_lbfgs_needs_fewer_steps_than_fire_and_than_ase(toys, minima):
    crystals = toys.shaken(minima)
    steps = {
        name: [r.steps for r in relax_batch(toys.Pairs(), crystals, asked(name, 1e-3))] for name in OPTIMIZERS
    }
    ase = []
    for atoms in to_atoms(crystals):
        atoms.calc = toys.OneByOne()
        run = LBFGS(FrechetCellFilter(atoms), logfile=None)
        run.run(1e-3, 3000)
        ase.append(run.nsteps)
    assert sum(steps["lbfgs"]) < 0.6 * sum(steps["fire"]) and sum(steps["lbfgs"]) < sum(ase)


# --- L-BFGS ---------------------------------------------------------------------------------------------
def test_the_direction_is_that_of_the_textbook(toys):
    """-H g by the matrices H <- V^T H V + rho s s^T, V = 1 - rho y s^T (Nocedal & Wright, eq. 7.19)."""
    x = toys.start(3)
    lbfgs, g = Lbfgs(memory=4), torch.Generator().manual_seed(0)
    state, pairs = lbfgs.rest(begin(x)), []

    def vector() -> Vector:
        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        return Vector(draw(*x.frac.shape), draw(*x.lattice.shape))

    for turn in range(6):  # more than it keeps
        s = vector()
        y = s.plus(vector().scaled(x, torch.full((3,), 0.3, dtype=torch.float64)))
        moved = torch.tensor([True, turn % 2 == 0, False])  # each crystal has its own history
        state = lbfgs._learn(state, s, y, moved)
        pairs.append((s, y, moved))
    force = vector()
    found = lbfgs._direction(state, force)
    for k, own in enumerate(zip(*(_flat(x, v) for pair in pairs for v in pair[:2]), strict=True)):
        f, d = _flat(x, force)[k], _flat(x, found)[k]
        kept = [(own[2 * i], own[2 * i + 1]) for i, pair in enumerate(pairs) if pair[2][k]][-4:]
        h = torch.eye(len(f), dtype=torch.float64) / 70
        if kept:
            s, y = kept[-1]
            h = torch.eye(len(f), dtype=torch.float64) * (s @ y) / (y @ y)
        for s, y in kept:
            v = torch.eye(len(f), dtype=torch.float64) - torch.outer(y, s) / (y @ s)
            h = v.T @ h @ v + torch.outer(s, s) / (y @ s)
        torch.testing.assert_close(d, h @ f)
    assert state.labels["pairs"].tolist() == [4, 3, 0]


def _flat(x: CrystalBatch, v: Vector) -> list[Tensor]:
    """Each crystal's part as one vector."""
    atoms = v.atoms.split(x.num_atoms.tolist())
    return [torch.cat([a.flatten(), c.flatten()]) for a, c in zip(atoms, v.cell, strict=True)]


def test_no_step_of_lbfgs_is_longer_than_its_limit(toys):
    settings = asked("lbfgs", 1e-3, trajectory=True)
    longest = []
    for _, result in BatchRelaxer(toys.Springs(), settings, optimizer=Lbfgs(max_step=0.05)).run(
        toys.start(3)
    ):
        for a, b in zip(result.frames, result.frames[1:], strict=False):
            d = b.crystal.frac - a.crystal.frac
            longest.append(float(((d - d.round()) @ a.crystal.lattice[0]).norm(dim=1).max()))
    assert 0.04 < max(longest) < 0.05 + 1e-9


def test_lbfgs_goes_down_on_an_egg_box(toys):
    """Half of the curvatures are negative there; each trial that climbed is taken back."""

    def egg_box(x: CrystalBatch) -> Mapping[str, Tensor]:
        phase = 4 * torch.pi * x.frac
        height = phase.sin()
        energy = x.lattice.new_zeros(len(x)).index_add(0, x.index, height.prod(1))
        slope = [phase[:, i].cos() * height[:, i - 1] * height[:, i - 2] for i in range(3)]
        slope = 4 * torch.pi * torch.stack(slope, 1)
        force = -torch.linalg.solve(x.lattice[x.index], slope[..., None]).squeeze(-1)
        return {"energy": energy, "forces": force, "stress": torch.zeros_like(x.lattice)}

    climbed = 0
    for result in relax_batch(egg_box, rand_crystals(1, 12), asked("lbfgs", 1e-4, trajectory=True)):
        energies = np.array([frame.energy for frame in result.frames])
        climbed += int((np.diff(energies) > 1e-4).sum())
        assert result.converged and energies[-1] <= energies.min() + 1e-4 and energies[-1] < energies[0]
    assert climbed > 0  # so that the rule was needed


# --- the company --------------------------------------------------------------------------------------------
@both
@pytest.mark.parametrize("room", [1, 7, 12])
def test_the_company_of_a_crystal_changes_nothing(toys, optimizer, room):
    crystals, settings = toys.start(), asked(optimizer, 0.01, max_steps=25)
    together = relax_batch(toys.Pairs(), crystals, settings)
    swapped = dict(BatchRelaxer(toys.Pairs(), settings, room=room).run(crystals))
    for place, result in enumerate(together):
        same(result, swapped[place], 1e-6)


def test_finished_crystals_make_room_within_the_limit(toys):
    crystals, potential = toys.start(), toys.Pairs()
    largest = int(crystals.num_atoms.max())
    settings = asked("fire", 0.05, max_steps=40)
    relaxer = BatchRelaxer(potential, settings, room=largest + 3)
    assert sorted(place for place, _ in relaxer.run(crystals)) == list(range(len(crystals)))
    assert max(potential.sizes) <= largest + 3
    assert sum(potential.sizes) == sum(
        (result.steps + 1) * len(result.crystal.numbers)
        for result in relax_batch(toys.Pairs(), crystals, settings)
    )  # nothing is evaluated that is done


def test_crystals_are_taken_when_there_is_room_and_results_come_as_they_are_done(toys):
    taken = []

    def stream():
        for place, crystal in enumerate(toys.start().split()):
            taken.append(place)
            yield crystal

    seen = []
    for place, _ in BatchRelaxer(toys.Pairs(), asked("lbfgs", 0.05), room=1).run(stream()):
        seen.append((place, len(taken)))
    assert [place for place, _ in seen] == list(range(6))  # room for one: in order
    assert [count for _, count in seen] == [2, 3, 4, 5, 6, 6]  # a look at the next one, no more


# --- edges --------------------------------------------------------------------------------------------------
@both
def test_giving_up_is_said(toys, optimizer):
    (result,) = relax_batch(toys.Pairs(), toys.start(2)[1], asked(optimizer, 1e-9, max_steps=3))
    assert not result.converged and result.steps == 3 and result.fmax > 1e-9 and result.error is None
    (result,) = relax_batch(toys.Pairs(), toys.start(2)[1], asked(optimizer, 1e-9, max_steps=0))
    assert result.steps == 0
    assert_close_crystals(result.crystal, toys.start(2)[1])


def test_labels_come_back_and_the_state_of_the_optimiser_does_not(toys):
    x = toys.start(3)
    x = x.replace(labels={"steps": torch.tensor([7.0, 8.0, 9.0])})
    for place, result in enumerate(relax_batch(toys.Pairs(), x, asked("lbfgs", 0.05, max_steps=2))):
        assert list(result.crystal.labels) == ["steps"] and not result.crystal.site_labels
        assert float(result.crystal.labels["steps"]) == 7.0 + place


@pytest.mark.parametrize("failure", ["nan", "raise"])
def test_a_crystal_that_blows_up_ends_alone(toys, failure):
    def broken(x: CrystalBatch) -> Mapping[str, Tensor]:
        bad = x.num_atoms == 6
        if failure == "raise" and bad.any():
            raise CellError("the cell has collapsed")
        out = dict(toys.Pairs()(x))
        out["energy"] = torch.where(bad, torch.nan, out["energy"])
        return out

    x, settings = toys.start(4), asked("lbfgs", 0.05, max_steps=300)
    alone = relax_batch(toys.Pairs(), x, settings)
    assert sorted(set(x.num_atoms.tolist()))[-1] == 6
    for count, result, sound in zip(
        x.num_atoms.tolist(), relax_batch(broken, x, settings), alone, strict=True
    ):
        if count == 6:
            assert not result.converged and result.steps == 0
            assert isinstance(result.error, CellError if failure == "raise" else NonFiniteError)
        else:
            same(result, sound, 1e-6)


def test_fixed_atoms_stay_and_the_others_find_their_minimum(toys):
    x = toys.start(2)[1]
    free = torch.ones(6, 3, dtype=torch.bool)
    free[0], free[1, 2] = False, False  # one atom wholly, one along z
    (result,) = relax_batch(toys.Springs(), x.replace(site_labels={"free": free}), asked("lbfgs", 1e-5))
    moved = torch.einsum("ni,ij->nj", result.crystal.frac - x.frac, x.lattice[0])
    assert result.converged and float(moved[~free].abs().max()) < 1e-12
    home = torch.einsum("ni,ij->nj", result.crystal.frac - 0.5, x.lattice[0])
    assert float(home[free].abs().max()) < 1e-4


@both
def test_slabs_keep_their_cell_and_are_not_wrapped_across_the_vacuum(toys, optimizer):
    x = toys.start(2)[1]
    lattice = x.lattice.clone()
    lattice[:, 2] *= 4
    frac = x.frac.clone()
    frac[:, 2] = (frac[:, 2] - frac[:, 2].min()) / 4 - 0.02
    slab = CrystalBatch(x.numbers, frac, lattice, x.num_atoms, {"pbc": torch.tensor([[True, True, False]])})
    (result,) = relax_batch(toys.Pairs(), slab, asked(optimizer, 0.05, max_steps=500))
    assert result.converged
    torch.testing.assert_close(result.crystal.lattice, lattice)
    assert float(result.crystal.frac[:, 2].max() - result.crystal.frac[:, 2].min()) < 0.6
    kept = asked(optimizer, 0.05, fix_symmetry=True)
    results = relax_batch(toys.Pairs(), [slab, rock_salt()], kept)
    assert isinstance(results[0].error, UnsupportedError) and results[1].converged


def test_no_crystals_and_bad_settings(toys):
    assert relax_batch(toys.Pairs(), []) == []
    for wrong in ({"fmax": 0.0}, {"max_steps": -1}, {"optimizer": "bfgs"}, {"symprec": 0.0}):
        with pytest.raises(InputError):
            RelaxSettings(**wrong)
    (result,) = relax_batch(toys.Pairs(), [toys.start(3)])
    assert "item 0 is a batch of 3" in str(result.error)


def test_with_a_model(tiny_model):
    from crystalml.predict import Predictor

    predictor = Predictor(tiny_model(dtype=torch.float64))
    results = relax_batch(predictor, rand_crystals(0, 3), asked("lbfgs", 0.05, max_steps=5))
    before = predictor(rand_crystals(0, 3))["energy"]
    assert all(result.energy <= float(e) for result, e in zip(results, before, strict=True))
