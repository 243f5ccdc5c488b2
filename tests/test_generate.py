"""StructureGenerator: what is asked for comes back, reproducibly, with its papers, or an error says why."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pymatgen.core import Composition, Lattice, Structure

from crystalml import generate, recipes
from crystalml.convert import to_structures
from crystalml.crystal import CrystalBatch
from crystalml.errors import (
    CompositionError,
    InputError,
    TooManyAtomsError,
    UnknownElementError,
    UnsupportedError,
)
from crystalml.generate import StructureGenerator
from crystalml.guard import standardise, to_valid_structure
from crystalml.metrics.validity import is_valid_structure
from crystalml.sample.template import FormulaUnits, formula_key, template

FAST = {"steps": 4, "progress": False}


@pytest.fixture(scope="module")
def noise():
    return recipes.noise_for(SimpleNamespace(config=SimpleNamespace(centered=False, process="diffcsp")))


@pytest.fixture
def make(tiny_model, noise, monkeypatch):
    monkeypatch.setattr(generate.recipes, "noise_for", lambda model: noise)  # its tables take seconds

    def build(dtype=torch.float64, card=None, **settings) -> StructureGenerator:
        model = tiny_model(dtype=dtype)
        model.card = card or {}
        return StructureGenerator(model, model, device="cpu", dtype=dtype, **settings)

    return build


@pytest.fixture(autouse=True)
def everything_is_valid(request, monkeypatch):
    """An untrained network draws nonsense cells; most laws are not about that."""
    if "real_guard" not in request.fixturenames:
        monkeypatch.setattr(generate, "to_valid_structure", lambda x: (to_structures(standardise(x))[0], ""))


@pytest.fixture
def real_guard():
    return None


def same(a: Structure, b: Structure, tolerance: float = 1e-6) -> bool:
    delta = a.frac_coords - b.frac_coords
    size = max(a.lattice.abc)  # untrained networks draw very large cells
    return (
        a.species == b.species
        and np.allclose(a.lattice.matrix / size, b.lattice.matrix / size, atol=tolerance)
        and np.allclose(delta - np.round(delta), 0, atol=tolerance)
    )


# --- what comes back --------------------------------------------------------------------------------------
def test_composition_counts_and_shapes_of_the_answer(make):
    generator = make()
    single = generator.sample("CsV3Sb5", 3, formula_units=2, **FAST)
    assert [s.composition for s in single] == [Composition("Cs2V6Sb10")] * 3
    nested = generator.sample(["NaCl", {"Mg": 1, "O": 1}, Composition("TiO2")], 2, **FAST)
    formulas = [[s.reduced_formula for s in group] for group in nested]
    assert formulas == [["NaCl"] * 2, ["MgO"] * 2, ["TiO2"] * 2]
    ranged = generator.sample("NaCl", 2, formula_units=range(1, 4), **FAST)
    assert [len(s) for s in ranged] == [2, 2, 4, 4, 6, 6]
    assert generator.sample("NaCl", 0, **FAST) == [] and generator.sample([], 2, **FAST) == []
    assert generator.report.requested == 0


def test_provenance_travels_with_every_structure(make):
    card = {"name": "tiny-g", "sha256": "ab" * 32}
    sample = make(card=card).sample("NaCl", 2, formula_units=2, seed=5, **FAST)[1]
    assert sample.properties == json.loads(json.dumps(sample.properties))
    found = sample.properties
    assert found["model"] == "tiny-g" and found["sha256"] == "ab" * 32
    assert (found["seed"], found["index"], found["steps"], found["guidance"]) == (5, 1, 4, 0.0)
    assert (found["formula_units"], found["attempts"]) == (2, 1)
    assert "crystalml_version" in found


def test_trajectories_end_in_the_sample(make):
    structures, paths = make().sample("NaCl", 2, return_trajectory=True, **FAST)
    assert len(structures) == len(paths) == 2
    for structure, path in zip(structures, paths, strict=True):
        assert path[-1] is structure
        assert 1 <= len(path) <= 5
    nested, nested_paths = make().sample(["NaCl", "MgO"], 1, return_trajectory=True, **FAST)
    assert nested_paths[1][0][-1] is nested[1][0]


# --- reproducibility --------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_depends_on_seed_composition_and_index_only(make, dtype):
    tolerance = 1e-8 if dtype == torch.float64 else 1e-2
    many = make(dtype).sample(["NaCl", "CsV3Sb5"], 5, seed=3, **FAST)
    alone = make(dtype, max_pairs=1).sample(["CsV3Sb5"], 3, seed=3, **FAST)
    for a, b in zip(many[1][:3], alone[0], strict=True):
        assert same(a, b, tolerance)
    again = make(dtype).sample(["NaCl", "CsV3Sb5"], 5, seed=3, **FAST)
    assert all(same(a, b, 0) for x, y in zip(many, again, strict=True) for a, b in zip(x, y, strict=True))


def test_order_of_elements_and_way_of_writing_do_not_matter(make):
    first, *others = [
        make().sample(way, 1, formula_units=1, **FAST)[0]
        for way in ("CsV3Sb5", "Sb5V3Cs", {"Sb": 5, "Cs": 1, "V": 3}, Composition("CsV3Sb5"))
    ]
    assert all(same(first, other, 0) for other in others)


def test_seeds_indices_and_compositions_give_different_crystals(make):
    a, b = make().sample("NaCl", 2, formula_units=2, seed=0, **FAST)
    c = make().sample("NaCl", 1, formula_units=2, seed=1, **FAST)[0]
    assert not same(a, b, 1e-3) and not same(a, c, 1e-3)


def test_the_seed_is_stable_across_versions_and_machines():
    cell = generate.Cell(Composition("CsV3Sb5"), 1)
    assert generate.Draw(cell, 0, 0).seed(0) == generate.Draw(cell, 9, 0).seed(0)
    seeds = {generate.Draw(cell, 0, i, k).seed(s) for i in range(4) for k in range(3) for s in range(3)}
    assert len(seeds) == 36 and all(0 <= seed < 2**63 for seed in seeds)
    assert generate.Draw(cell, 0, 0).seed(0) == 7541564099422874848


def test_guidance_changes_samples_and_none_is_exactly_off(make):
    plain = make().sample("NaCl", 1, **FAST)[0]
    assert same(plain, make().sample("NaCl", 1, guidance=0.0, **FAST)[0], 0)
    assert not same(plain, make().sample("NaCl", 1, guidance=50.0, **FAST)[0], 1e-9)


# --- formula units ----------------------------------------------------------------------------------------
def test_automatic_formula_units(make):
    statistics = {"by_formula": {"1-1": 4}, "by_atoms": {"2": 1, "3": 2}}
    generator = make(card={"formula_units": statistics})

    def z(formula: str) -> int:
        return generator.cells(formula, "auto", None)[0].z

    assert z("NaCl") == 4  # same anonymous formula
    assert z("TiO2") == 2  # same number of atoms a formula unit
    assert z("CsV3Sb5") == 1  # nothing known
    cell = generator.cells("Cs2V6Sb10", "auto", None)[0]
    assert (cell.z, cell.formula) == (1, "Cs2V6Sb10")  # written as a cell content


def test_formula_unit_statistics_count_modes():
    cells = [[11, 17] * 4] * 3 + [[12, 8]] * 2 + [[22, 8, 8] * 2] * 5
    x = template(cells)
    statistics = FormulaUnits.count(x.numbers, x.num_atoms, at_least=5)
    assert statistics.by_formula == {"1-1": 4, "1-2": 2}
    assert statistics.by_atoms == {"2": 4, "3": 2}
    assert FormulaUnits.from_dict(json.loads(json.dumps(statistics.to_dict()))) == statistics
    assert formula_key([55, 23, 23, 23, 51, 51, 51, 51, 51]) == ("1-3-5", 1)
    assert formula_key([1]) == ("1", 1)


# --- the guard --------------------------------------------------------------------------------------------
def test_invalid_draws_are_counted_redrawn_and_finally_left_out(make, monkeypatch):
    calls = iter([False, True, False, True, False, False])
    valid = generate.to_valid_structure
    monkeypatch.setattr(generate, "to_valid_structure", lambda x: valid(x) if next(calls) else (None, "bad"))
    generator = make(max_redraws=2, max_pairs=1)
    with pytest.warns(UserWarning, match="1 of 3 samples"):
        found = generator.sample("NaCl", 3, **FAST)
    # first round F T F, second round T F, third round F
    assert [s.properties["attempts"] for s in found] == [2, 1]
    report = generator.report
    assert (report.requested, report.returned, report.missing, report.rejected.total()) == (3, 2, 1, 4)


def test_the_guard_sees_nan_flat_cells_and_near_images(real_guard):
    def crystal(lattice, frac) -> CrystalBatch:
        frac = torch.tensor(frac, dtype=torch.float64)
        numbers = torch.full((len(frac),), 29)
        return CrystalBatch(numbers, frac, torch.tensor([lattice]).double(), torch.tensor([len(frac)]))

    good = [[4.0, 0, 0], [0, 4, 0], [0, 0, 4]]
    assert to_valid_structure(crystal(good, [[0.0, 0, 0]]))[1] == ""
    assert to_valid_structure(crystal(good, [[0.0, 0, 0], [0.05, 0, 0.99]]))[0] is None
    needle = crystal([[1e6, 0, 0], [0, 4, 0], [0, 0, 4]], [[0.0, 0, 0]])
    assert to_valid_structure(needle)[1] == "degenerate cell"
    assert to_valid_structure(crystal([[9.0, 0, 0], [9, 1e-2, 0], [0, 0, 9]], [[0.0, 0, 0]]))[0] is None
    assert to_valid_structure(crystal([[0.4, 0, 0], [0, 4, 0], [0, 0, 4]], [[0.0, 0, 0]]))[0] is None
    assert to_valid_structure(crystal([[4.0, 0, 0], [4, 0, 0], [0, 0, 4]], [[0.0, 0, 0]]))[1] == "no volume"
    assert to_valid_structure(crystal(good, [[float("nan"), 0, 0]]))[1] == "not finite"
    assert to_valid_structure(crystal([[float("inf"), 0, 0], [0, 4, 0], [0, 0, 4]], [[0.0, 0, 0]]))[0] is None


def test_what_comes_back_is_valid(make, real_guard):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generator = make(torch.float32)
        found = generator.sample(["NaCl", "CsV3Sb5"], 4, steps=20, progress=False)
    assert all(is_valid_structure(s) and s.volume > 0 for group in found for s in group)
    report = generator.report
    assert report.returned + report.missing == 8 == report.requested


def test_standard_cells_are_right_handed_and_the_same_crystal():
    g = torch.Generator().manual_seed(0)
    lattice = 4 * torch.eye(3) + torch.randn(6, 3, 3, generator=g)
    lattice[::2] *= torch.tensor([1.0, 1, -1])
    x = template([[11, 17, 17]] * 6, dtype=torch.float64)
    x = x.replace(lattice=lattice.double(), frac=torch.rand(18, 3, generator=g).double())
    y = standardise(x)
    assert (torch.linalg.det(y.lattice) > 0).all()
    for a, b in zip(x.split(), y.split(), strict=True):
        before = Structure(a.lattice[0].numpy(), a.numbers.tolist(), a.frac.numpy())
        after = Structure(b.lattice[0].numpy(), b.numbers.tolist(), b.frac.numpy())
        np.testing.assert_allclose(before.distance_matrix, after.distance_matrix, atol=1e-9)
        turn = np.linalg.det(np.linalg.solve(a.lattice[0].numpy(), b.lattice[0].numpy()))
        assert turn == pytest.approx(float(torch.linalg.det(a.lattice[0]).sign()))


# --- bad input --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrong", ["", "Xx2", "Na0.5Cl", {"Na": 1.5}, {"Na": -1}, {}, "Na-Cl", 7])
def test_bad_compositions(make, wrong):
    with pytest.raises(InputError):
        make().sample([wrong], 1, **FAST)


@pytest.mark.parametrize(
    "settings",
    [
        {"n": -1},
        {"n": 1.5},
        {"formula_units": 0},
        {"formula_units": range(0)},
        {"formula_units": 1.5},
        {"formula_units": True},
        {"formula_units": "many"},
        {"guidance": -1.0},
        {"steps": 0},
        {"steps": 10**6},
    ],
)
def test_bad_settings(make, settings):
    with pytest.raises(InputError):
        make().sample("NaCl", **{"n": 1, "progress": False, **settings})


def test_limits_of_the_model(make, tiny_model):
    generator = make(card={"max_atoms": 20, "elements": ["Na", "Cl"]})
    with pytest.raises(TooManyAtomsError, match="max_atoms=22"):
        generator.sample("NaCl", formula_units=11, **FAST)
    assert len(generator.sample("NaCl", formula_units=11, max_atoms=22, **FAST)[0]) == 22
    with pytest.raises(TooManyAtomsError):
        generator.sample("NaCl", formula_units=2, max_atoms=3, **FAST)
    with pytest.raises(UnknownElementError, match="Mg"):
        generator.sample("MgO", **FAST)
    with pytest.raises(CompositionError):
        generator.sample("Na1.5Cl", **FAST)
    with pytest.raises(UnsupportedError, match="noise heads"):
        StructureGenerator(tiny_model(noise=False), device="cpu")
    with pytest.raises(InputError, match="energy model"):
        StructureGenerator(tiny_model(), None, device="cpu").sample("NaCl", guidance=1.0, **FAST)


def test_the_callers_module_is_left_alone(tiny_model):
    module = tiny_model().train()
    StructureGenerator(module, None, device="cpu", dtype="float64").sample("NaCl", **FAST)
    assert module.training and next(module.parameters()).dtype == torch.float32


def test_the_energy_model_is_loaded_only_when_needed(tiny_model):
    generator = StructureGenerator(tiny_model(), "no-such-model", device="cpu")
    generator.sample("NaCl", **FAST)
    with pytest.raises(Exception, match="no-such-model"):
        generator.sample("NaCl", guidance=1.0, **FAST)


def test_a_cubic_reference_passes_the_guard(real_guard):
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert is_valid_structure(salt)


def test_prototypes_come_first_and_diffusion_fills_the_rest(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an untrained network's draws may fail the guard, and so be missing
        known = make().sample("CsV3Sb5", 200, formula_units=1, strategy="prototype", progress=False)
        many = make().sample("CsV3Sb5", len(known) + 6, formula_units=1, strategy="auto", **FAST)
    assert known and all(s.composition.reduced_formula == "CsV3Sb5" for s in known)
    assert all(s.properties["strategy"] == "prototype" for s in known)
    kinds = [s.properties["strategy"] for s in many]
    assert kinds[: len(known)] == ["prototype"] * len(known) and set(kinds[len(known) :]) == {"diffusion"}
    with pytest.raises(InputError, match="hybrid"):
        make().sample("KCl", 1, strategy="hybrid", **FAST)


def test_gemsdiff_generates_through_the_same_face():
    """Another network, another noise, a hundred levels instead of a thousand: nothing here knows."""
    torch.manual_seed(0)
    generator = StructureGenerator(
        recipes.gemsdiff("tiny").model.build(), None, device="cpu", dtype="float64"
    )
    groups, paths = generator.sample(["NaCl", "CsV3Sb5"], 2, return_trajectory=True, progress=False, steps=6)
    assert [len(group) for group in groups] == [2, 2] and generator.report.missing == 0
    assert all(
        s.properties["steps"] == 6 and len(path) == 7 for s, path in zip(groups[1], paths[1], strict=True)
    )
    alone = generator.sample("CsV3Sb5", 2, steps=6, progress=False)
    assert all(same(a, b, 1e-8) for a, b in zip(groups[1], alone, strict=True))
    full = generator.sample("NaCl", 1, progress=False)[0]
    assert full.properties["steps"] == 100
    with pytest.raises(InputError, match=r"1\.\.100"):
        generator.sample("NaCl", 1, steps=101, progress=False)
    tiny = recipes.dao_p_diffusion("tiny").model.build()
    with pytest.raises(UnsupportedError, match="noise of diffcsp"):
        StructureGenerator(generator.model, tiny, device="cpu").sample("NaCl", guidance=1.0, progress=False)
