"""StructureGenerator: what is asked for comes back, reproducibly, with its papers, or an error says why."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pymatgen.core import Composition, Lattice, Structure

from crystalml import generate, guard, recipes
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
from crystalml.noise.product import CrystalNoise
from crystalml.prototypes import PrototypeAtlas
from crystalml.request import Cell, Draw
from crystalml.sample.template import FormulaUnits, formula_key, template

FAST = {"steps": 4, "strategy": "diffusion", "distinct": False, "progress": False}


@pytest.fixture(scope="module")
def noise():
    return recipes.noise_for(SimpleNamespace(config=SimpleNamespace(centered=False, process="diffcsp")))


@pytest.fixture
def make(tiny_model, noise, monkeypatch):
    monkeypatch.setattr(generate.recipes, "noise_for", lambda model: noise)  # its tables take seconds

    def build(dtype=torch.float64, card=None, **settings) -> StructureGenerator:
        model = tiny_model(dtype=dtype)
        model.card = card or {}
        settings = {"potential": model, **settings}
        return StructureGenerator(model, model, device="cpu", dtype=dtype, **settings)

    return build


@pytest.fixture(autouse=True)
def everything_is_valid(request, monkeypatch):
    """An untrained network draws nonsense cells; most laws are not about that."""
    if "real_guard" not in request.fixturenames:
        monkeypatch.setattr(guard, "to_valid_structure", lambda x: (to_structures(standardise(x))[0], ""))


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
    cell = Cell(Composition("CsV3Sb5"), 1)
    assert Draw(cell, 0, 0).seed(0) == Draw(cell, 9, 0).seed(0)
    seeds = {Draw(cell, 0, i, k).seed(s) for i in range(4) for k in range(3) for s in range(3)}
    assert len(seeds) == 36 and all(0 <= seed < 2**63 for seed in seeds)
    assert Draw(cell, 0, 0).seed(0) == 7541564099422874848


def test_guidance_changes_samples_and_none_is_exactly_off(make):
    plain = make().sample("NaCl", 1, **FAST)[0]
    assert same(plain, make().sample("NaCl", 1, guidance=0.0, **FAST)[0], 0)
    assert not same(plain, make().sample("NaCl", 1, guidance=50.0, **FAST)[0], 1e-9)


# --- formula units ----------------------------------------------------------------------------------------
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
    valid = guard.to_valid_structure
    monkeypatch.setattr(guard, "to_valid_structure", lambda x: valid(x) if next(calls) else (None, "bad"))
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
    generator = make(torch.float32)
    with pytest.warns(UserWarning, match="left out"):
        found = generator.sample(["NaCl", "CsV3Sb5"], 4, **FAST | {"steps": 20})
    assert all(is_valid_structure(s) and s.volume > 0 for group in found for s in group)
    report = generator.report
    assert report.rejected and report.requested == 8 and report.returned == sum(map(len, found)) > 0


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
@pytest.mark.parametrize("wrong", ["", "Xx2", "Na0.5Cl", {"Na": 1.5}, {"Na": -1}, {}, "Na-Xx", 7])
def test_bad_compositions(make, wrong):
    with pytest.raises(InputError):
        make().sample([wrong], 1, **FAST)


@pytest.mark.parametrize(
    "settings",
    [
        *[{"n": n} for n in (-1, 1.5, 2.0, "2", math.nan, None)],
        *[{"formula_units": z} for z in (0, range(0), 1.5, True, "many")],
        *[{"guidance": scale} for scale in (-1.0, math.nan)],
        *[{"steps": steps} for steps in (0, 10**6, 2.5)],
        {"strategy": "magic"},
        {"rank_by": "beauty"},
        {"noise_level": 1.5},
        *[{"space_group": group} for group in (0, "225", 225.5)],
        {"lattice": 4.0},
        {"fixed": "POSCAR"},
    ],
)
def test_bad_settings(make, settings):
    with pytest.raises(InputError):
        make().sample("NaCl", **{"n": 1, "progress": False, "strategy": "diffusion", **settings})


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


# --- known types ------------------------------------------------------------------------------------------
def salts() -> PrototypeAtlas:
    sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
    return PrototypeAtlas.from_structures(
        [
            Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], sites),
            Structure.from_spacegroup("Pm-3m", Lattice.cubic(4.12), ["Cs", "Cl"], sites),
        ]
    )


QUIET = {"formula_units": 1, "steps": 3, "progress": False}


def test_known_types_come_first_and_diffusion_fills_the_rest(make):
    generator = make(atlas=salts())
    found = generator.sample("KBr", 4, distinct=False, **QUIET)
    kinds = [s.properties["strategy"] for s in found]
    assert kinds == ["hybrid", "hybrid", "diffusion", "diffusion"]
    assert generator.report.requested == generator.report.returned == 4
    assert {s.get_space_group_info()[1] for s in found[:2]} == {225, 221}
    with pytest.warns(UserWarning, match="2 structures fewer .* prototypes for KBr; try"):
        only = generator.sample("KBr", 4, strategy="hybrid", **QUIET)
    assert len(only) == 2 and generator.report.missing == 2
    with pytest.warns(UserWarning, match="1 structures fewer .* KBr in space group 229; try") as caught:
        assert generator.sample("KBr", 1, strategy="prototype", space_group=229, **QUIET) == []
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="3 structures fewer"):
        new = generator.sample("NaCl", 4, strategy="prototype", same_formula=False, **QUIET)
    assert [s.get_space_group_info()[1] for s in new] == [221]  # all that is told by others than itself
    with pytest.warns(UserWarning, match="model, steps, guidance not used: known prototypes gave all"):
        generator.sample("KBr", 2, guidance=1.0, **QUIET)
    drawn = generator.sample("KBr", 4, strategy="diffusion", distinct=False, **QUIET)
    assert same(drawn[2], found[2]) and same(drawn[3], found[3])  # whatever came before them


def test_known_types_say_where_they_come_from(make):
    generator = make(atlas=salts(), card={"name": "tiny-p", "sha256": "cd" * 32})
    best, second = generator.sample("KBr", 2, strategy="hybrid", **QUIET)
    found = best.properties
    assert found == json.loads(json.dumps(found))
    assert {"prototype", "template", "rank_score", "probability", "noise_level", "energy_per_atom"} <= set(
        found
    )
    assert (found["potential"], found["formula_units"], found["noise_level"]) == ("tiny-p", 1, 0.0)
    assert found["probability"] >= second.properties["probability"]
    plain = generator.sample("KBr", 2, strategy="prototype", **QUIET)
    assert [s.properties["strategy"] for s in plain] == ["prototype", "prototype"]
    assert all(math.isnan(s.properties["energy_per_atom"]) for s in plain)  # no potential has seen them
    moved = generator.sample("KBr", 1, strategy="hybrid", noise_level=0.05, **QUIET)
    assert moved[0].properties["noise_level"] == 0.05


def test_known_types_are_denoised_by_processes_without_a_flow(make):
    generator = make(atlas=salts())
    generator.noise = CrystalNoise.gemsdiff()
    (found,) = generator.sample(
        "KBr", 1, strategy="hybrid", noise_level=0.03, formula_units=1, progress=False
    )
    assert found.properties["noise_level"] == 0.03 and found.composition.reduced_formula == "KBr"


def test_a_chemical_system_shares_the_structures_among_formulas(make):
    generator = make(atlas=PrototypeAtlas.default())
    found = generator.sample("Na-Cl", 6, max_atoms=6, strategy="prototype", progress=False)
    assert found and all({e.symbol for e in s.composition} == {"Na", "Cl"} for s in found)
    assert found[0].reduced_formula == "NaCl" and len({s.reduced_formula for s in found}) > 1
    with pytest.raises(InputError, match="formula_units"):
        generator.sample("Na-Cl", 2, formula_units=2)
    with pytest.raises(InputError, match="twice"):
        generator.sample("Na-Na", 2)


def test_answers_by_energy(make):
    generator = make(atlas=salts())
    found = generator.sample("KBr", 4, rank_by="energy", distinct=False, **QUIET)
    energies = [s.properties["energy_per_atom"] for s in found]
    assert energies == sorted(energies) and all(map(math.isfinite, energies))
    bare = make(atlas=salts())
    bare.potential = None
    with pytest.raises(InputError, match="potential"):
        bare.sample("KBr", 1, rank_by="energy", **QUIET)


def test_duplicates_are_left_out_and_counted(make, monkeypatch):
    one = Structure.from_spacegroup("Fm-3m", Lattice.cubic(6.6), ["K", "Br"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    monkeypatch.setattr(guard, "to_valid_structure", lambda x: (one.copy(), ""))
    generator = make()
    assert len(generator.sample("K4Br4", 3, strategy="diffusion", steps=2, progress=False)) == 1
    assert (generator.report.duplicates, generator.report.missing) == (2, 0)


# --- what is fixed ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("solver", ["pc", "heun"])
def test_a_lattice_and_sites_stay(make, solver):
    cell = Lattice.orthorhombic(4.0, 5.0, 6.0)
    generator = make(atlas=salts(), solver=solver)
    (found,) = generator.sample("NaCl", np.int64(1), lattice=cell.matrix.tolist(), **QUIET)
    assert np.allclose(found.lattice.parameters, cell.parameters, atol=1e-5)
    frame = Structure(cell, ["Cl", "Na"], [[0.1, 0.2, 0.3], [0.6, 0.7, 0.8]])
    (found,) = generator.sample("Na2ClF", 1, fixed=frame, **QUIET)
    assert np.allclose(found.lattice.parameters, cell.parameters, atol=1e-5)
    kept = [[s.frac_coords for s in found if s.specie.symbol == e] for e in ("Cl", "Na")]
    assert np.allclose(kept[0][0], [0.1, 0.2, 0.3], atol=1e-6)
    assert any(np.allclose(x, [0.6, 0.7, 0.8], atol=1e-6) for x in kept[1])
    assert "2 sites" in found.properties["fixed"]


@pytest.mark.parametrize(("number", "symbol"), [(225, "Fm-3m"), (221, 221)])
def test_a_space_group_stays(make, number, symbol):
    generator = make(atlas=salts())
    for strategy in ("diffusion", "hybrid"):
        found = generator.sample("KBr", 1, space_group=symbol, strategy=strategy, **QUIET)
        assert [s.get_space_group_info(symprec=1e-3)[1] for s in found] == [number]


def test_what_cannot_be_fixed_is_refused(make):
    generator, cell = make(atlas=salts()), Lattice.cubic(5.0)
    with pytest.raises(UnsupportedError, match="diffusion"):
        generator.sample("NaCl", 1, lattice=cell, strategy="hybrid", **QUIET)
    with pytest.raises(InputError, match="not two"):
        generator.sample("NaCl", 1, lattice=cell, space_group=225, **QUIET)
    with pytest.raises(InputError, match="no room"):
        generator.sample("NaCl", 1, lattice=Lattice.cubic(0.5), **QUIET)
    with pytest.raises(CompositionError, match="int 5"):
        generator.sample(5, **QUIET)
    with pytest.raises(InputError, match="2 Na are fixed"):
        generator.sample(
            "NaCl", 1, fixed=Structure(cell, ["Na", "Na"], [[0, 0, 0], [0.5, 0.5, 0.5]]), **QUIET
        )
    with pytest.raises(InputError, match="231"):
        generator.sample("NaCl", 1, space_group=231, **QUIET)
    with pytest.raises(InputError, match="no crystal with space group 62"):
        generator.sample("NaCl", 1, space_group=62, strategy="diffusion", **QUIET)


def test_gemsdiff_generates_through_the_same_face():
    """Another network, another noise, a hundred levels instead of a thousand: nothing here knows."""
    torch.manual_seed(0)
    model = recipes.gemsdiff("tiny").model.build()
    generator = StructureGenerator(model, None, device="cpu", dtype="float64")
    groups, paths = generator.sample(["NaCl", "CsV3Sb5"], 2, return_trajectory=True, **{**FAST, "steps": 6})
    assert [len(group) for group in groups] == [2, 2] and generator.report.missing == 0
    assert [(s.properties["steps"], len(p)) for s, p in zip(groups[1], paths[1], strict=True)] == 2 * [(6, 7)]
    alone = generator.sample("CsV3Sb5", 2, **{**FAST, "steps": 6})
    assert all(same(a, b, 1e-8) for a, b in zip(groups[1], alone, strict=True))
    full = generator.sample("NaCl", 1, **{**FAST, "steps": None})[0]
    assert full.properties["steps"] == generate.QUICK == 25
    with pytest.raises(InputError, match=r"1\.\.100"):
        generator.sample("NaCl", 1, **{**FAST, "steps": 101})
    tiny = recipes.dao_p_diffusion("tiny").model.build()
    with pytest.raises(UnsupportedError, match="noise of diffcsp"):
        StructureGenerator(generator.model, tiny, device="cpu").sample("NaCl", guidance=1.0, **FAST)


def test_the_network_left_to_us_is_the_one_that_can(tiny_model, monkeypatch):
    """GemsDiff draws; guidance, partial noising and flow solvers need DAO-G; a choice of the user stays."""
    models = {name: tiny_model() for name in (generate.DRAWS, generate.SCORES, "mine")}
    monkeypatch.setattr(generate, "as_model", lambda model, *_: models.get(model, models["mine"]))
    generator = StructureGenerator(device="cpu", energy_model=models["mine"])
    for settings, name in (({}, generate.DRAWS), ({"guidance": 1.0}, generate.SCORES), ({}, generate.DRAWS)):
        generator.sample("NaCl", 0, **FAST, **settings)
        assert generator.model is models[name]
    assert StructureGenerator(device="cpu", solver="heun").model is models[generate.SCORES]
    mine = StructureGenerator("mine", device="cpu")
    mine.sample("NaCl", 0, **FAST, guidance=1.0)
    assert mine.model is models["mine"]
