"""The door: what comes in is the same crystal; what is no crystal is refused with its value and a remedy."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.spacegroup import crystal
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import DummySpecies, Element, Lattice, Molecule, Species, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from crystalml import errors
from crystalml.convert import to_atoms, to_batch, to_structures
from crystalml.crystal import CrystalBatch

EXACT = {"dtype": torch.float64}
SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])

quick = settings(derandomize=True, max_examples=30, deadline=None)
lengths = st.lists(st.floats(2.5, 12), min_size=3, max_size=3)
angles = st.lists(st.floats(65, 115), min_size=3, max_size=3)
coordinate = st.floats(-3, 3, allow_subnormal=True) | st.sampled_from(
    [0.0, -1e-9, -1e-17, 1 - 1e-9, 1.0, 0.5]
)


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    """Any ordered crystal, of either handedness, coordinates anywhere."""
    n = draw(st.integers(1, 6))
    matrix = Lattice.from_parameters(*draw(lengths), *draw(angles)).matrix.copy()
    if draw(st.booleans()):
        matrix[draw(st.integers(0, 2))] *= -1
    numbers = draw(st.lists(st.integers(1, 118), min_size=n, max_size=n))
    frac = draw(st.lists(st.lists(coordinate, min_size=3, max_size=3), min_size=n, max_size=n))
    return Structure(Lattice(matrix), [Element.from_Z(z) for z in numbers], frac)


def distances(structure: Structure) -> np.ndarray:
    """All interatomic vectors' lengths within two images: a fingerprint of the crystal, atom by atom."""
    k = np.array(np.meshgrid(*[range(-2, 3)] * 3)).reshape(3, -1).T
    frac = structure.frac_coords - np.floor(structure.frac_coords)
    delta = frac[None, :, None] - frac[:, None, None]
    return np.linalg.norm((delta - np.round(delta) + k) @ structure.lattice.matrix, axis=-1).min(-1)


# --- there and back ---------------------------------------------------------------------------------------
@quick
@given(structures(), st.sampled_from([torch.float32, torch.float64]))
def test_every_ordered_structure_passes_and_comes_back_the_same(
    structure: Structure, dtype: torch.dtype
) -> None:
    batch = to_batch(structure, dtype=dtype)
    assert batch.dtype == dtype
    assert ((batch.frac >= 0) & (batch.frac < 1)).all()
    assert (torch.linalg.det(batch.lattice) > 0).all()
    (back,) = to_structures(batch)
    assert [s.specie for s in back] == [s.specie for s in structure]
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    np.testing.assert_allclose(back.lattice.parameters, structure.lattice.parameters, rtol=tolerance)
    np.testing.assert_allclose(distances(back), distances(structure), atol=tolerance * 10)


@quick
@given(structures())
def test_atoms_and_structure_give_the_same_batch(structure: Structure) -> None:
    atoms = Atoms(
        structure.atomic_numbers, positions=structure.cart_coords, cell=structure.lattice.matrix, pbc=True
    )
    ours, theirs = to_batch(atoms, **EXACT), to_batch(structure, **EXACT)
    assert torch.equal(ours.numbers, theirs.numbers)
    torch.testing.assert_close(ours.lattice, theirs.lattice)
    off = ours.frac - theirs.frac
    torch.testing.assert_close(off - off.round(), torch.zeros_like(off), atol=1e-12, rtol=0)


@quick
@given(st.lists(structures(), min_size=1, max_size=4))
def test_a_batch_is_its_structures_in_order(many: list[Structure]) -> None:
    batch = to_batch(many, **EXACT)
    assert batch.num_atoms.tolist() == [len(s) for s in many]
    assert batch.numbers.tolist() == [z for s in many for z in s.atomic_numbers]
    again = to_batch(batch, **EXACT)
    torch.testing.assert_close(again.frac, batch.frac, atol=0, rtol=0)
    torch.testing.assert_close(again.lattice, batch.lattice, atol=0, rtol=0)


def test_atoms_round_trip() -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.positions += 7.3
    (back,) = to_atoms(to_batch(atoms, **EXACT))
    assert back.pbc.all()
    assert back.numbers.tolist() == [11, 17]
    np.testing.assert_allclose(back.cell.array, atoms.cell.array)
    np.testing.assert_allclose(back.get_all_distances(mic=True), atoms.get_all_distances(mic=True))


def test_left_handed_cell_is_the_same_crystal_and_not_its_mirror_image() -> None:
    quartz = Structure.from_spacegroup(
        "P3_221",
        Lattice.hexagonal(4.9134, 5.4052),
        ["Si", "O"],
        [[0.4697, 0, 2 / 3], [0.4135, 0.2669, 0.7858]],
    )
    matrix = quartz.lattice.matrix[[1, 0, 2]]  # the same lattice, listed in a left-handed order
    left = Structure(Lattice(matrix), quartz.species, quartz.frac_coords[:, [1, 0, 2]])
    assert np.linalg.det(left.lattice.matrix) < 0
    (back,) = to_structures(to_batch(left, **EXACT))
    assert np.linalg.det(back.lattice.matrix) > 0
    # P3_121 and P3_221 are mirror images of each other: the space group tells the hand
    assert (
        back.get_space_group_info()[0] == left.get_space_group_info()[0] == quartz.get_space_group_info()[0]
    )
    mirror = Structure(quartz.lattice, quartz.species, -quartz.frac_coords)
    assert mirror.get_space_group_info()[0] != quartz.get_space_group_info()[0]
    assert StructureMatcher().fit(back, quartz)
    shift = back.cart_coords - left.cart_coords  # every atom sits where it was, up to a lattice vector
    whole = shift @ np.linalg.inv(left.lattice.matrix)
    np.testing.assert_allclose(whole, np.round(whole), atol=1e-9)


def test_float32_never_rounds_a_coordinate_up_to_one() -> None:
    for value in (-1e-9, 1 - 1e-9, -1e-30, 0.9999999999):
        structure = Structure(Lattice.cubic(4), ["Na"], [[value, 0, 0]])
        assert to_batch(structure).frac.max() < 1


def test_batches_keep_their_labels_and_mixed_inputs_drop_them() -> None:
    batch = to_batch([SALT, SALT]).replace(labels={"energy": torch.tensor([1.0, 2.0])})
    assert to_batch(batch, **EXACT).labels["energy"].dtype == torch.float64
    assert to_batch([batch, batch]).labels["energy"].tolist() == [1.0, 2.0, 1.0, 2.0]
    assert not to_batch([batch, SALT]).labels


def test_several_kinds_together() -> None:
    batch = to_batch(iter([SALT, bulk("Cu"), to_batch(bulk("W"))]))
    assert batch.num_atoms.tolist() == [8, 1, 1]
    assert batch.dtype == torch.float32


# --- accepted with something dropped ----------------------------------------------------------------------
def test_oxidation_states_isotopes_and_properties_are_dropped() -> None:
    structure = Structure(
        Lattice.cubic(4),
        [Species("Na", 1), "D", "T", Element("Cl")],
        [[0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]],
        site_properties={"magmom": [1, 2, 3, 4]},
        charge=1,
    )
    assert to_batch(structure).numbers.tolist() == [11, 1, 1, 17]


def test_an_unskewed_and_a_skewed_cell_are_both_fine() -> None:
    matrix = SALT.lattice.matrix @ np.eye(3)
    matrix[0] += 7 * matrix[1] - 5 * matrix[2]
    skewed = Structure(Lattice(matrix), SALT.species, SALT.cart_coords, coords_are_cartesian=True)
    assert to_batch(skewed, min_distance=2.0).num_atoms.tolist() == [8]


# --- refused ----------------------------------------------------------------------------------------------
def cell(matrix: object) -> Atoms:
    return Atoms("Na", cell=matrix, pbc=True)


def cubic(species: object, frac: object = ((0, 0, 0),), a: float = 4.0) -> Structure:
    return Structure(Lattice.cubic(a), species, frac)


SLAB = Structure(Lattice(np.eye(3) * 4, pbc=(True, True, False)), ["Na"], [[0, 0, 0]])
REFUSED = {
    "dummy species": (cubic([DummySpecies("X")]), errors.UnknownElementError, "dummy species X"),
    "dummy atom": (Atoms("X", cell=[3, 3, 3], pbc=True), errors.UnknownElementError, "atomic number 0"),
    "Z too large": (Atoms([119], cell=[3, 3, 3], pbc=True), errors.UnknownElementError, "119"),
    "mixed site": (
        cubic([{"Na": 0.5, "K": 0.5}]),
        errors.DisorderedStructureError,
        r"site 0 holds .*ordered",
    ),
    "vacancy": (cubic([{"Na": 0.7}]), errors.DisorderedStructureError, r"Na:0\.7"),
    "NaN": (cubic(["Na"], [[0, math.nan, 0]]), errors.NonFiniteError, "atom 0 are .*nan"),
    "infinity": (cubic(["Na"], [[0, math.inf, 0]]), errors.NonFiniteError, "inf"),
    "NaN position": (Atoms("Na", [[math.nan] * 3], cell=[3, 3, 3], pbc=True), errors.NonFiniteError, "nan"),
    "NaN cell": (cell(np.full((3, 3), math.nan)), errors.NonFiniteError, "cell"),
    "infinite cell": (cell([3, 3, math.inf]), errors.NonFiniteError, "cell"),
    "no cell": (cell(None), errors.CellError, "singular.*three independent"),
    "flat cell": (cell([[3, 0, 0], [0, 3, 0], [3, 3, 0]]), errors.CellError, "singular"),
    "zero cell": (Structure(Lattice(np.zeros((3, 3))), ["Na"], [[0, 0, 0]]), errors.CellError, "singular"),
    "tiny cell": (cubic(["Na"], a=1e-3), errors.CellError, "volume"),
    "metres": (cubic(["Na"], a=1e8), errors.CellError, "Angstrom"),
    "no atoms": (cubic([], []), errors.EmptyStructureError, "no atoms"),
    "no atoms, ASE": (Atoms(cell=[3, 3, 3], pbc=True), errors.EmptyStructureError, "no atoms"),
    "slab": (fcc111("Cu", (1, 1, 3), vacuum=8), errors.UnsupportedError, r"False.*pbc = True"),
    "molecule": (molecule("H2O"), errors.UnsupportedError, "pbc"),
    "pymatgen molecule": (Molecule(["H"], [[0, 0, 0]]), errors.UnsupportedError, "Molecule"),
    "pymatgen slab": (SLAB, errors.UnsupportedError, "pbc"),
    "a path": ("NaCl.cif", errors.InputError, "read_structures"),
    "a number": (3, errors.InputError, "int"),
    "nothing": ([], errors.InputError, "no structures"),
    "None": ([None], errors.InputError, "NoneType"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_refused(case: str) -> None:
    bad, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        to_batch(bad)  # type: ignore[arg-type]


def test_partial_occupancy_is_seen_where_ase_hides_it() -> None:
    half = {"occupancies": [0.5, 0.5, 1.0], "spacegroup": 225, "cellpar": [5.7] * 3 + [90] * 3}
    mixed = crystal(["Na", "K", "Cl"], [(0, 0, 0), (0, 0, 0), (0.5, 0.5, 0.5)], onduplicates="keep", **half)
    vacancies = crystal(["Na", "Cl"], [(0, 0, 0), (0.5, 0.5, 0.5)], **{**half, "occupancies": [0.7, 1.0]})
    for atoms, message in ((mixed, "'K': 0.5"), (vacancies, r"'Na': 0\.7")):
        plain = atoms.copy()
        del plain.arrays["spacegroup_kinds"]  # as other files leave it
        for seen in (atoms, atoms * 2, plain):
            with pytest.raises(errors.DisorderedStructureError, match=f"structure 1: .*{message}.*ordered"):
                to_batch([SALT, seen])
        with pytest.raises(errors.DisorderedStructureError, match=f"{message}.*ordered"):
            to_batch(AseAtomsAdaptor.get_structure(atoms))  # type: ignore[arg-type]
        assert to_batch(atoms[atoms.numbers == 17]).num_atoms.tolist() == [4]  # the whole ones
    mixed.info["occupancy"] = 0.5  # not ASE's
    assert len(to_batch(mixed)) == 1
    whole = crystal(["Na", "Cl"], [(0, 0, 0), (0.5, 0.5, 0.5)], **{**half, "occupancies": [1, 1]})
    assert len(to_batch(whole)) == 1


@pytest.mark.parametrize("case", ["dummy species", "NaN", "no cell", "mixed site", "slab", "no atoms"])
@pytest.mark.filterwarnings("ignore")
def test_the_place_in_the_list_is_named(case: str) -> None:
    bad, error, _ = REFUSED[case]
    with pytest.raises(error, match="structure 2: "):
        to_batch([SALT, bulk("Cu"), bad])  # type: ignore[list-item]


def test_a_batch_is_checked_like_anything_else() -> None:
    batch = to_batch([SALT, SALT])
    frac = batch.frac.clone()
    frac[11, 0] = math.nan
    with pytest.raises(errors.NonFiniteError, match="structure 1: the coordinates of atom 3"):
        to_batch(batch.replace(frac=frac))
    with pytest.raises(errors.UnknownElementError, match="-1"):
        to_batch(batch.replace(numbers=batch.numbers - 12))


def test_overlapping_atoms() -> None:
    close = cubic(["Na", "Cl"], [[0, 0, 0], [0, 0, 0.999]])
    assert len(to_batch(close)) == 1  # accepted unless asked
    with pytest.raises(errors.OverlappingAtomsError, match=r"structure 1: .*0\.004.*at least 0\.5"):
        to_batch([SALT, close], min_distance=0.5)
    with pytest.raises(errors.OverlappingAtomsError, match="atoms 1 and 2, Cl and K"):
        to_batch(cubic(["Na", "Cl", "K"], [[0.5] * 3, [0.1, 0, 0], [0.9, 0, 0]]), min_distance=1.0)
    with pytest.raises(errors.OverlappingAtomsError, match=r"0\.000"):
        to_batch(cubic(["Na", "Na"], [[0, 0, 0], [1, 1, 1]]), min_distance=0.5)


def test_an_atom_may_overlap_its_own_image() -> None:
    thin = Structure(Lattice.orthorhombic(0.4, 6, 6), ["C"], [[0, 0, 0]])
    with pytest.raises(errors.OverlappingAtomsError, match=r"0\.400"):
        to_batch(thin, min_distance=0.5)
    assert len(to_batch(thin, min_distance=0.39)) == 1


def test_limits_of_the_model() -> None:
    with pytest.raises(errors.TooManyAtomsError, match=r"8 atoms.*at most 7"):
        to_batch(SALT, max_atoms=7)
    assert len(to_batch(SALT, max_atoms=8)) == 1
    with pytest.raises(errors.UnknownElementError, match=r"Cl \(Z = 17\)"):
        to_batch(SALT, known={11, 12})
    assert len(to_batch(SALT, known={11, 17})) == 1


def test_dtype_must_hold_coordinates() -> None:
    with pytest.raises(errors.InputError, match="int64"):
        to_batch(SALT, dtype=torch.int64)


number = st.floats(-10, 10) | st.floats(allow_nan=True, allow_infinity=True, width=64)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-3, 130), max_size=3),
    st.lists(number, min_size=9, max_size=9),
    st.lists(number, min_size=9, max_size=9),
    st.floats(0, 2),
)
def test_any_arrays_give_a_sound_batch_or_a_typed_error(
    numbers: list[int], box: list[float], frac: list[float], min_distance: float
) -> None:
    n = len(numbers)
    raw = CrystalBatch(
        torch.tensor(numbers, dtype=torch.long),
        torch.tensor(frac, dtype=torch.float64).reshape(3, 3)[:n],
        torch.tensor(box, dtype=torch.float64).reshape(1, 3, 3),
        torch.tensor([n]),
    )
    try:
        batch = to_batch(raw, min_distance=min_distance)
    except errors.InputError:
        return
    assert batch.frac.isfinite().all()
    assert batch.lattice.isfinite().all()
    assert ((batch.frac >= 0) & (batch.frac < 1)).all()
    assert (batch.volume > 0).all()
