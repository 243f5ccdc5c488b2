"""Labelled frames: they are the calculator's, in their new orientation, and agree with their crystals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT

from crystalml.convert import to_atoms, to_batch
from crystalml.datasets.packed import PackedDataset
from crystalml.errors import InputError
from crystalml.label_data import DESCENT, MAX_CHANGE, label_data

ENERGY = [-1.0, 0.5, np.nan, 2.0]


def packed(crystals, energy) -> PackedDataset:
    x = to_batch(crystals, dtype=torch.float32)
    labels = {"energy": np.array(energy), "parent": np.arange(len(x)), "band_gap": np.zeros(len(x))}
    return PackedDataset.from_arrays(
        x.numbers.numpy(), x.frac.numpy(), x.lattice.numpy(), x.num_atoms.numpy(), labels
    )


@pytest.fixture(scope="module")
def data() -> PackedDataset:
    crystals = [bulk("Cu"), bulk("Al", cubic=True), bulk("Ni", cubic=True), bulk("Au", "hcp", 2.9, 4.7)]
    return packed(crystals, ENERGY)


@pytest.fixture(scope="module")
def found(data):
    return label_data(data, EMT(), frames=4, seed=3, progress=False)


def asked(data: PackedDataset, i: int):
    atoms = to_atoms(data[[i]])[0]
    atoms.calc = EMT()
    return atoms


def test_frames_carry_what_the_calculator_says_of_them_as_they_stand(found):
    """Forces and stress were computed before the cell was turned upright."""
    for i, x in enumerate(found.data[:].split()):
        atoms = asked(found.data, i)
        np.testing.assert_allclose(x.site_labels["forces"].numpy(), atoms.get_forces(), atol=2e-4)
        np.testing.assert_allclose(x.labels["stress"][0].numpy(), atoms.get_stress(voigt=False), atol=2e-5)
    assert (found.data.lattice[:, 0, 1] == 0).all() and (found.data.lattice[:, 2, :2] == 0).all()
    assert (found.data.labels["off_equilibrium"] == 1).all()
    assert set(found.data.labels) == {"energy", "stress", "off_equilibrium", "parent"}


def test_energies_are_the_crystals_own_and_what_the_move_costs(data, found):
    parents = found.data.labels["parent"].int().tolist()
    assert parents == [0] * 4 + [1] * 4 + [3] * 4  # the one without an energy is left out
    for i, parent in enumerate(parents):
        rest, moved = (asked(d, k).get_potential_energy() for d, k in ((data, parent), (found.data, i)))
        change = (moved - rest) / int(data.num_atoms[parent])
        assert float(found.data.labels["energy"][i]) == pytest.approx(ENERGY[parent] + change, abs=2e-4)


def test_moves_are_as_large_as_asked_and_differ(data):
    def spread(displacement, strain):
        out = label_data(
            data, EMT(), frames=8, displacement=displacement, strain=strain, progress=False
        ).data  # fmt: skip
        return out.labels["stress"].abs().mean(), out.site_labels["forces"].abs().mean(), out

    small = spread((1e-4, 2e-4), (1e-5, 2e-5))
    moved = spread((0.05, 0.1), (1e-5, 2e-5))
    bent = spread((1e-4, 2e-4), (0.02, 0.03))
    assert moved[1] > 30 * small[1] and bent[0] > 3 * small[0] and bent[0] > moved[0] * 0.5
    cells = bent[2].lattice[:8].double()
    strain = torch.linalg.svdvals(torch.linalg.solve(cells[0].expand(8, 3, 3), cells)).log().abs().amax(-1)
    assert (strain > 1e-3).sum() >= 2 and strain.max() < 0.3


def test_a_frame_depends_on_the_seed_and_its_place_alone(data, found):
    again = label_data(data, EMT(), frames=2, seed=3, progress=False)
    rows = {(r["crystal"], r["frame"]): r for r in found.rows}
    assert all(rows[row["crystal"], row["frame"]] == row for row in again.rows)
    other = label_data(data, EMT(), frames=2, seed=4, progress=False)
    assert all(rows[row["crystal"], row["frame"]]["frac"] != row["frac"] for row in other.rows[2:])


def test_a_killed_run_goes_on_without_asking_again(data, found, tmp_path):
    class Dying(EMT):
        left = 9

        def calculate(self, *args, **kwargs):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            super().calculate(*args, **kwargs)

    Dying.__name__ = "EMT"
    with pytest.raises(KeyboardInterrupt):
        label_data(data, Dying(), frames=4, seed=3, folder=tmp_path, progress=False)
    counting = Dying()
    counting.left = 100
    done = label_data(data, counting, frames=4, seed=3, folder=tmp_path, progress=False)
    assert done.rows == found.rows
    assert 100 - counting.left == 10  # two crystals of five; the first was done
    with pytest.raises(InputError, match="seed"):
        label_data(data, EMT(), frames=4, seed=5, folder=tmp_path, progress=False)
    label_data(data, EMT(), exclude={"Cu1"}, folder=tmp_path / "b", progress=False)
    with pytest.raises(InputError, match="exclude = '1 formulas"):
        label_data(data, EMT(), exclude={"Al1"}, folder=tmp_path / "b", progress=False)


def by_emt(many):
    for atoms in many:
        atoms.calc = EMT()
    return [(x.get_potential_energy(), x.get_forces(), x.get_stress(voigt=False)) for x in many]


def test_a_function_is_asked_about_many_at_once_and_says_the_same(metals):
    calls = []

    def label(many):
        calls.append(len(many))
        return by_emt(many)

    settings = {"frames": 2, "substituted": 1, "seed": 3, "progress": False}
    assert label_data(metals, label, **settings).rows == label_data(metals, EMT(), **settings).rows
    assert calls == [5 * (1 + 2 + 1)] + [5] * (DESCENT - 1)


def test_what_fails_among_many_leaves_out_itself_alone(metals):
    iron = packed([*[to_atoms(metals[[i]])[0] for i in range(5)], bulk("Fe")], np.arange(6.0))
    found = label_data(iron, by_emt, frames=2, progress=False)
    assert [row["failed"] == "" for row in found.rows] == [True] * 10 + [False] * 2
    with pytest.raises(InputError, match="given 10 crystals and returned 9"):
        label_data(metals, lambda many: by_emt(many)[1:], progress=False)


def test_moves_beyond_max_change_are_not_believed(data):
    strict = label_data(data, EMT(), frames=4, max_change=1e-3, seed=3, progress=False)
    assert 0 < len(strict.data) < 12 and all("0.001" in reason for reason in strict.failed)


@pytest.fixture(scope="module")
def metals() -> PackedDataset:
    crystals = [bulk(name, cubic=True) for name in ("Cu", "Al", "Ni", "Au", "Pd")]
    return packed(crystals, np.arange(5.0))


def test_substituted_crystals_have_new_elements_of_the_set_and_the_calculators_labels(metals):
    found = label_data(metals, EMT(), substituted=2, seed=1, progress=False)
    assert len(found.data) == 5 * (1 + 2 * DESCENT) and not found.failed
    known = set(metals.numbers.tolist())
    new = [x for x, row in zip(found.data[:].split(), found.rows, strict=True) if "numbers" in row]
    for i, x in enumerate(new):
        parent = metals[[i // (2 * DESCENT)]]
        assert set(x.numbers.tolist()) <= known - set(parent.numbers.tolist())
        assert int(x.labels["parent"]) == i // (2 * DESCENT)
        atoms = to_atoms(x)[0]
        atoms.calc = EMT()
        np.testing.assert_allclose(x.site_labels["forces"].numpy(), atoms.get_forces(), atol=2e-4)
        np.testing.assert_allclose(x.labels["stress"][0].numpy(), atoms.get_stress(voigt=False), atol=2e-5)
    moved = [found.rows[1 : 1 + DESCENT], found.rows[1 + DESCENT : 1 + 2 * DESCENT]]
    assert all(rows[-1]["energy"] < rows[0]["energy"] for rows in moved)  # a descent


def test_energies_of_substituted_crystals_are_on_the_scale_of_the_sets_labels(metals):
    """Labels that are the calculator's but for a constant an element are met by new crystals, too."""
    mu = dict(zip((29, 13, 28, 79, 46), (-3.0, 1.0, 2.0, 0.5, -7.0), strict=True))
    labels = [asked(metals, i).get_potential_energy() / 4 - mu[z] for i, z in enumerate(mu)]
    data = packed([to_atoms(metals[[i]])[0] for i in range(5)], labels)
    out = label_data(data, EMT(), substituted=1, progress=False).data
    for i, x in enumerate(out[:].split()):
        expected = asked(out, i).get_potential_energy() / 4 - mu[int(x.numbers[0])]
        assert float(x.labels["energy"]) == pytest.approx(expected, abs=2e-4)


def test_energies_are_unknown_where_the_set_cannot_tell_what_elements_cost():
    alloy = bulk("Cu", cubic=True)
    alloy.symbols[:2] = "Au"
    out = label_data(packed([alloy], [0.3]), EMT(), substituted=1, seed=2, progress=False).data
    assert out.labels["energy"].isfinite().tolist() == [True] + [False] * DESCENT
    assert out.site_labels["forces"].isfinite().all()
    # and where all ordinary frames failed
    data = packed([bulk("Cu", cubic=True), bulk("Pd", cubic=True)], [0.0, 0.0])
    wild = label_data(data, EMT(), substituted=1, displacement=(1.0, 1.1), strain=(0.5, 0.6), progress=False)
    assert len(wild.data) == 2 * DESCENT and wild.data.labels["energy"].isnan().all()


def test_substituted_frames_leave_the_others_as_they_are_and_need_another_element(data, found):
    more = label_data(data, EMT(), frames=4, substituted=1, seed=3, progress=False)
    rows = {(row["crystal"], row["frame"]): row for row in more.rows}
    assert all(rows[row["crystal"], row["frame"]] == row for row in found.rows)
    alone = label_data(packed([bulk("Cu")], [0.0]), EMT(), substituted=1, progress=False)
    assert len(alone.data) == 1 and "no other element" in next(iter(alone.failed))


def test_no_crystal_takes_an_excluded_formula(metals):
    everything = {f"{symbol}1" for symbol in ("Cu", "Al", "Ni", "Au", "Pd")}
    out = label_data(metals, EMT(), substituted=4, exclude=everything - {"Ni1"}, progress=False)
    new = [row["numbers"] for row in out.rows if "numbers" in row]
    assert new and {z for numbers in new for z in numbers} == {28}
    assert any("Cu1 is excluded" in reason for reason in out.failed)


def test_what_the_calculator_cannot_do_is_said_and_the_rest_goes_on():
    data = packed([bulk("Cu"), bulk("Fe")], [0.0, 0.0])
    found = label_data(data, EMT(), frames=2, progress=False)
    assert len(found.data) == 2 and sum(found.failed.values()) == 2
    assert "Fe" in next(iter(found.failed)) or "NotImplementedError" in next(iter(found.failed))
    wild = label_data(packed([bulk("Cu", cubic=True)], [0.0]), EMT(), displacement=(0.01, 1.0),
                      strain=(1e-3, 2e-3), frames=12, progress=False)  # fmt: skip
    assert any(str(MAX_CHANGE) in reason for reason in wild.failed)


def test_bad_input_is_refused(data):
    bare = PackedDataset(data.numbers, data.frac, data.lattice, data.num_atoms, {})
    with pytest.raises(InputError, match="energy"):
        label_data(bare, EMT())
    for name in ("displacement", "strain"):
        with pytest.raises(InputError, match=name):
            label_data(data, EMT(), **{name: (0.2, 0.1)})
    with pytest.raises(InputError, match="frames"):
        label_data(data, EMT(), frames=0)
    with pytest.raises(InputError, match="max_change"):
        label_data(data, EMT(), max_change=0.0)
    with pytest.raises(InputError, match="substituted"):
        label_data(data, EMT(), substituted=-1)
    with pytest.raises(InputError, match=r"no frame.*Fe|no frame.*NotImpl"):
        label_data(packed([bulk("Fe")], [0.0]), EMT(), progress=False)


def test_on_the_command_line(run, data, tmp_path):
    data.save(tmp_path / "a.safetensors")
    line = ["label-data", tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors", "-q"]
    done = run(*line, "--calculator", "ase.calculators.emt:EMT", "--frames", "2", "--substituted", "1")
    assert done.exit_code == 0 and "15 frames" in done.output
    assert len(PackedDataset.load(tmp_path / "b.safetensors")) == 15
    assert run(*line, "--calculator", "ase.calculators.emt:EMT", "--strain", "1").exit_code != 0
