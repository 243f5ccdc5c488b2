"""The atlas: what it gathers, what it forgets, what it predicts; on typed-in crystals."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, Lattice, Structure

from crystalml.errors import CompositionError, FileReadError, InputError
from crystalml.prototypes import PrototypeAtlas, substitute
from crystalml.prototypes.symmetry import space_group

Table = dict[str, list[tuple[int, ...]]]


def contents(atlas: PrototypeAtlas) -> Table:
    """Label -> elements seen, with the geometry checked elsewhere."""
    return {
        atlas.label(p): sorted(map(tuple, atlas.tables.element_tuples(p)[0].tolist()))
        for p in range(len(atlas))
    }


@pytest.fixture(scope="session")
def atlas(members: list[Structure]) -> PrototypeAtlas:
    return PrototypeAtlas.from_structures(members)


def test_types_are_gathered(atlas: PrototypeAtlas) -> None:
    groups = sorted(space_group(int(hall))[0] for hall in atlas.tables.hall)
    assert groups == [14, 136, 166, 186, 221, 221, 225, 225]
    weights = [atlas.tables.element_tuples(p)[1].sum() for p in range(len(atlas))]
    assert sum(weights) == pytest.approx(20, rel=0.02)


@pytest.mark.parametrize("seed", [0, 1])
def test_order_of_atoms_and_choice_of_cell_do_not_matter(
    members: list[Structure], atlas: PrototypeAtlas, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    moved = []
    for structure in members:
        out = structure.get_primitive_structure() if seed else structure.copy()
        order = generator.permutation(len(out))
        frac = (out.frac_coords + generator.random(3))[order]
        moved.append(Structure(out.lattice, [out.species[i] for i in order], frac))
    other = PrototypeAtlas.from_structures(moved)
    assert sorted(map(str, contents(other).values())) == sorted(map(str, contents(atlas).values()))
    matcher = StructureMatcher(primitive_cell=False, scale=False)
    for p in range(len(atlas)):
        elements = atlas.tables.element_tuples(p)[0][0]
        assert any(
            matcher.fit(atlas.instantiate(p, elements, 12.0), other.instantiate(q, elements, 12.0))
            for q in range(len(other))
            if other.tables.counts(q) == atlas.tables.counts(p)
        )


def test_a_mean_lies_between_its_members(atlas: PrototypeAtlas) -> None:
    rutile = next(p for p in range(len(atlas)) if space_group(int(atlas.tables.hall[p]))[0] == 136)
    geometry = atlas.tables.geometry(rutile)
    ratio = geometry.cell[2] / geometry.cell[0]
    assert 2.959 / 4.594 < ratio < 3.186 / 4.737
    assert min(abs(geometry.sites - u).min() for u in (0.306, 0.694, 0.194, 0.806)) < 1e-3


def test_geometry_follows_the_elements(atlas: PrototypeAtlas) -> None:
    """Each member's own cell and sites come back for its own elements, a mean of the like ones for others."""
    own = {"TiO2": (2.959 / 4.594, 0.305), "SnO2": (3.186 / 4.737, 0.307)}
    rutiles = {name: _rutile(atlas, name) for name in ("TiO2", "SnO2", "GeO2")}
    for name, (ratio, u) in own.items():
        others = {other: abs(rutiles[name][0] - r) for other, (r, _) in own.items()}
        assert min(others, key=others.__getitem__) == name
        assert rutiles[name] == (pytest.approx(ratio, rel=0.01), pytest.approx(u, abs=2e-3))
    assert own["TiO2"][0] <= rutiles["GeO2"][0] <= own["SnO2"][0]


def _rutile(atlas: PrototypeAtlas, formula: str) -> tuple[float, float]:
    """c/a and u of the atlas's rutile for a formula."""
    found = next(c for c in atlas.candidates(formula, 6) if len(c.species) == 2)
    geometry = atlas.tables.geometry(found.prototype, atlas.likeness(found.prototype, found.species))
    site = min(abs(geometry.sites[1] % 1.0 - 0.5))
    return float(geometry.cell[2] / geometry.cell[0]), 0.5 - float(site)


def test_own_formula_lends_no_geometry_either(atlas: PrototypeAtlas) -> None:
    found = next(c for c in atlas.candidates("TiO2", 6) if len(c.species) == 2)
    tin = next(c for c in atlas.candidates("SnO2", 6) if c.prototype == found.prototype)
    without = atlas.realise(found, same_formula=False).lattice
    exact = atlas.realise(tin).lattice
    shape, other = (sorted(np.array(cell.abc) / cell.volume ** (1 / 3)) for cell in (without, exact))
    np.testing.assert_allclose(shape, other, rtol=0.005)


def test_every_prototype_has_its_space_group_exactly(atlas: PrototypeAtlas) -> None:
    for p in range(len(atlas)):
        structure = atlas.instantiate(p, atlas.tables.element_tuples(p)[0][0], 11.0)
        assert structure.get_space_group_info(symprec=1e-4)[1] == space_group(int(atlas.tables.hall[p]))[0]
        assert len(structure) == sum(atlas.tables.counts(p))
        assert structure.volume / len(structure) == pytest.approx(11.0)
        assert (structure.frac_coords >= 0).all()
        assert (structure.frac_coords < 1).all()


@pytest.mark.parametrize(
    ("formula", "group"),
    [
        ("NaF", 225),
        ("KBr", 225),
        ("CaTiO3", 221),
        ("BaF2", 225),
        ("GeO2", 136),
        ("AgAlO2", 166),
        ("CsI", 221),
    ],
)
def test_unseen_members_are_found(atlas: PrototypeAtlas, formula: str, group: int) -> None:
    found = substitute(formula, 5, atlas=atlas, num_atoms=6 if formula == "GeO2" else None)
    assert group in [structure.properties["space_group"] for structure in found[:2]]
    assert all(s.composition.reduced_composition == Composition(formula) for s in found)


def test_elements_stand_on_the_right_sites(atlas: PrototypeAtlas) -> None:
    best = substitute("CaTiO3", 1, atlas=atlas)[0]
    bonds = {str(site.specie): min(n.nn_distance for n in best.get_neighbors(site, 4)) for site in best}
    assert bonds["Ti"] < bonds["Ca"]
    assert best.properties["template"] in (["Sr", "Ti", "O"], ["Ba", "Ti", "O"])


def test_provenance_and_scores(atlas: PrototypeAtlas) -> None:
    found = substitute("NaBr", 10, atlas=atlas)
    properties = [structure.properties for structure in found]
    scores = [p["score"] for p in properties]
    assert scores == sorted(scores, reverse=True)
    assert sum(np.exp(c.score) for c in atlas.candidates("NaBr")) == pytest.approx(1)
    assert {"prototype", "prototype_id", "space_group", "template", "probability", "source"} <= set(
        properties[0]
    )
    assert [p["index"] for p in properties] == list(range(len(found)))


def test_predictions_differ_and_repeat(atlas: PrototypeAtlas) -> None:
    first, second = substitute("NaBr", 10, atlas=atlas), substitute("NaBr", 10, atlas=atlas)
    assert first == second
    matcher = StructureMatcher(stol=0.05)
    assert not any(matcher.fit(a, b) for i, a in enumerate(first) for b in first[:i])


def test_own_formula_can_be_left_out(atlas: PrototypeAtlas) -> None:
    assert atlas.candidates("SrTiO3")[0].template == atlas.candidates("SrTiO3")[0].species
    other = atlas.candidates("SrTiO3", same_formula=False)
    assert other
    assert all(c.template != c.species for c in other)


def test_volumes_are_those_of_crystals_like_it(atlas: PrototypeAtlas) -> None:
    volume = {name: atlas.candidates(name)[0].volume for name in ("NaCl", "SrTiO3", "KBr", "NaF")}
    assert volume["NaCl"] == pytest.approx(5.64**3 / 8, rel=0.05)
    assert volume["SrTiO3"] == pytest.approx(3.905**3 / 5, rel=0.05)
    assert volume["NaF"] < volume["NaCl"] < volume["KBr"]


def test_supercells_serve_larger_cells(atlas: PrototypeAtlas) -> None:
    found = substitute("Na4Br4", 3, atlas=atlas)
    assert [len(structure) for structure in found] == [8, 8, 8]
    assert [s.properties["supercell"] for s in found] == [4, 4, 2]  # rock salt, CsCl, wurtzite
    assert [len(s.get_primitive_structure()) for s in found] == [2, 2, 4]


def test_nothing_known_is_said_clearly(atlas: PrototypeAtlas) -> None:
    assert atlas.candidates("NaMgAlSiPS") == []
    with pytest.warns(UserWarning, match="no prototype for 'NaMgAlSiPS'"):
        assert substitute("NaMgAlSiPS", 3, atlas=atlas) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert substitute("NaMgAlSiPS", 3, atlas=atlas, warn=False) == []
        assert substitute("NaCl", 0, atlas=atlas) == []


def test_an_empty_atlas_works(tmp_path: Path) -> None:
    empty = PrototypeAtlas.from_structures([])
    assert len(empty) == 0
    assert substitute("NaCl", 3, atlas=empty, warn=False) == []
    empty.save(tmp_path / "empty.xz")
    assert len(PrototypeAtlas.load(tmp_path / "empty.xz")) == 0


def test_save_and_load_change_nothing(atlas: PrototypeAtlas, tmp_path: Path) -> None:
    path = tmp_path / "atlas.safetensors.xz"
    atlas.save(path)
    other = PrototypeAtlas.load(path)
    assert contents(other) == contents(atlas)
    for a, b in zip(substitute("NaBr", 5, atlas=atlas), substitute("NaBr", 5, atlas=other), strict=True):
        np.testing.assert_allclose(a.lattice.matrix, b.lattice.matrix, rtol=1e-6)
        assert a.properties["prototype_id"] == b.properties["prototype_id"]


def test_one_structure_is_an_atlas(members: list[Structure]) -> None:
    assert len(PrototypeAtlas.from_structures(members[0])) == 1


def test_bad_requests_say_what_and_how(atlas: PrototypeAtlas, tmp_path: Path) -> None:
    with pytest.raises(CompositionError, match="fractional"):
        substitute("Na0.5Cl", 1, atlas=atlas)
    with pytest.raises(InputError, match="multiple"):
        substitute("NaCl", 1, atlas=atlas, num_atoms=3)
    with pytest.raises(InputError, match="whole number"):
        substitute("NaCl", -1, atlas=atlas)
    for n in (2.0, "2", float("nan"), None):
        with pytest.raises(InputError, match="structures wanted"):
            substitute("NaCl", n, atlas=atlas)  # type: ignore[arg-type]
    for size in (0, -2, 2.0, "2"):
        with pytest.raises(InputError, match="num_atoms"):
            substitute("NaCl", 1, atlas=atlas, num_atoms=size)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="num_atoms=0"):
        atlas.candidates("NaCl", 0)
    assert len(substitute("NaBr", np.int64(1), atlas=atlas, num_atoms=np.int64(2))) == 1  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no prototype 99"):
        atlas.instantiate(99, ["Na", "Cl"], 20.0)
    with pytest.raises(InputError, match="needs 2 elements"):
        atlas.instantiate(0, ["Na"], 20.0)
    (tmp_path / "no.xz").write_bytes(b"nothing")
    with pytest.raises(FileReadError, match="no prototype atlas"):
        PrototypeAtlas.load(tmp_path / "no.xz")
    with pytest.raises(FileReadError, match="cannot read"):
        PrototypeAtlas.load(tmp_path / "absent.xz")


def test_polymorphs_far_apart_stay_apart() -> None:
    def layered(c: float) -> Structure:
        sites = [[0, 0, 0], [0, 0, 0.5]]
        return Structure.from_spacegroup("P4/mmm", Lattice.tetragonal(3.0, c), ["Cu", "Au"], sites)

    assert len(PrototypeAtlas.from_structures([layered(3.6), layered(3.7)])) == 1
    assert len(PrototypeAtlas.from_structures([layered(3.6), layered(4.6)])) == 2
