"""The tools themselves: sound crystals, true rotations, and laws that catch every way of breaking them."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from crystalml import testing
from crystalml.crystal import CrystalBatch
from crystalml.geometry.neighbors import min_distances, neighbor_list
from crystalml.testing import (
    REFERENCE_CRYSTALS,
    TOLERANCES,
    Kind,
    alpha_quartz,
    assert_batch_law,
    assert_close_crystals,
    assert_gradient,
    assert_permutation_law,
    assert_rotation_law,
    assert_symmetric,
    assert_translation_law,
    rand_crystals,
    random_rotation,
)

KINDS: dict[str, Kind] = {
    "energy": "invariant",
    "site": "node-invariant",
    "forces": "vector",
    "slope": "frac",
    "epsilon": "lattice",
    "stress": "tensor",
}
BATCH = rand_crystals(1)


def pair_potential(x: CrystalBatch) -> dict[str, Tensor]:
    """A smooth pair potential with every kind of output, by hand: the laws must all pass on it."""
    i, _, _, vector, d = neighbor_list(x, 4.0)
    weight = x.numbers.to(x.dtype).sqrt()
    terms = weight[i] * (1 - d / 4.0).clamp(min=0) ** 4
    site = torch.zeros_like(x.frac[:, 0]).index_add(0, i, terms)
    energy = torch.zeros_like(x.lattice[:, 0, 0]).index_add(0, x.index, site)
    pull = torch.zeros_like(x.frac).index_add(0, i, terms[:, None] * vector)
    outer = (terms[:, None] * vector)[:, :, None] * vector[:, None]
    stress = torch.zeros_like(x.lattice).index_add(0, x.index[i], outer)
    slope = torch.linalg.solve(x.lattice[x.index].mT, pull[..., None])[..., 0]
    epsilon = energy[:, None, None] * x.lattice
    return {
        "energy": energy, "site": site, "forces": pull, "slope": slope, "epsilon": epsilon, "stress": stress
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_lawful_function_passes(dtype: torch.dtype) -> None:
    assert_symmetric(pair_potential, BATCH.to(dtype=dtype), KINDS)


def test_a_lawful_function_passes_on_reference_crystals() -> None:
    batch = CrystalBatch.cat([build() for build in REFERENCE_CRYSTALS.values()])
    assert_symmetric(pair_potential, batch, KINDS)


def test_gradients_pass() -> None:
    assert_gradient(pair_potential, BATCH)


# Each breaks one law by a little; the others are left whole.
def lab_axis(x: CrystalBatch) -> Tensor:
    return 1e-3 * x.lattice[:, 0, 0]


def handed(x: CrystalBatch) -> Tensor:
    return 1e-3 * torch.linalg.det(x.lattice)


def first_atom(x: CrystalBatch) -> Tensor:
    return 1e-3 * x.numbers[x.offsets].to(x.dtype)


def origin(x: CrystalBatch) -> Tensor:
    return torch.zeros_like(x.lattice[:, 0, 0]).index_add(0, x.index, 1e-3 * (6.28318 * x.frac[:, 0]).sin())


def company(x: CrystalBatch) -> Tensor:
    return 1e-3 * x.num_atoms.to(x.dtype).mean().expand(len(x))


def width(x: CrystalBatch) -> Tensor:
    return x.pad(x.frac[:, 0] * 0, fill=1e-3).sum(-1)


def place(x: CrystalBatch) -> Tensor:
    return 1e-3 * torch.arange(len(x), dtype=x.dtype)


def nan(x: CrystalBatch) -> Tensor:
    return x.lattice[:, 0, 0] * float("nan")


@pytest.mark.parametrize(
    ("defect", "law", "message"),
    [
        (lab_axis, assert_rotation_law, "rotation law: 'energy'"),
        (handed, assert_rotation_law, "reflection law: 'energy'"),
        (first_atom, assert_permutation_law, "permutation law: 'energy'"),
        (origin, assert_translation_law, "translation law: 'energy'"),
        (company, assert_batch_law, "batch law"),
        (width, assert_batch_law, "batch law"),
        (place, assert_batch_law, "batch law"),
        (nan, assert_rotation_law, "nan"),
        (nan, assert_permutation_law, "nan"),
        (nan, assert_translation_law, "nan"),
        (nan, assert_batch_law, "nan"),
    ],
)
def test_each_law_catches_its_offender(
    defect: Callable[[CrystalBatch], Tensor], law: Callable[..., None], message: str
) -> None:
    def broken(x: CrystalBatch) -> dict[str, Tensor]:
        out = pair_potential(x)
        return out | {"energy": out["energy"] + defect(x)}

    with pytest.raises(AssertionError, match=message):
        law(broken, BATCH, KINDS)


@pytest.mark.parametrize("name", ["forces", "epsilon", "stress", "site"])
def test_outputs_of_the_wrong_kind_are_caught(name: str) -> None:
    wrong: dict[str, Kind] = {name: "invariant"}
    law = assert_permutation_law if name == "site" else assert_rotation_law
    with pytest.raises(AssertionError, match=name):
        law(pair_potential, BATCH, wrong)


def test_proper_rotations_only_on_request() -> None:
    def fn(x: CrystalBatch) -> dict[str, Tensor]:
        return {"energy": torch.linalg.det(x.lattice)}

    assert_rotation_law(fn, BATCH, {"energy": "invariant"}, reflect=False)


def test_a_wrong_gradient_is_caught() -> None:
    def detached(x: CrystalBatch) -> dict[str, Tensor]:
        held = x.replace(lattice=x.lattice.detach())
        return {"energy": pair_potential(held)["energy"]}

    with pytest.raises(AssertionError, match="d energy / d lattice"):
        assert_gradient(detached, BATCH)
    with pytest.raises(AssertionError, match="d energy / d frac"):
        assert_gradient(lambda x: {"energy": pair_potential(x)["energy"].detach()}, BATCH)


def test_a_vanishing_gradient_passes() -> None:
    assert_gradient(lambda x: {"energy": 1e3 * pair_potential(x)["energy"]}, testing.fcc())


# --- crystals -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(5))
def test_random_crystals_are_sound(seed: int) -> None:
    batch = rand_crystals(seed, 6, max_atoms=12, species=(3, 8), min_distance=1.4)
    assert batch.num_atoms[:2].tolist() == [1, 12]
    assert ((batch.num_atoms >= 1) & (batch.num_atoms <= 12)).all()
    assert ((batch.frac >= 0) & (batch.frac < 1)).all()
    assert (torch.linalg.det(batch.lattice) > 0).all()
    assert (min_distances(batch) >= 1.4).all()
    assert set(batch.numbers.tolist()) <= {3, 8}
    density = batch.volume / batch.num_atoms
    assert ((density > 11.9) & (density < 30.1)).all()


def test_random_crystals_follow_the_seed() -> None:
    assert_close_crystals(rand_crystals(5), rand_crystals(torch.Generator().manual_seed(5)), atol=0)
    with pytest.raises(AssertionError):
        assert_close_crystals(rand_crystals(5), rand_crystals(6))
    assert rand_crystals(5, dtype=torch.float32).dtype == torch.float32


def test_no_room() -> None:
    with pytest.raises(ValueError, match="no room"):
        rand_crystals(0, 2, max_atoms=8, min_distance=3.0)


@pytest.mark.parametrize("reflect", [False, True])
def test_random_rotations_are_orthogonal_and_of_the_right_hand(reflect: bool) -> None:
    g = torch.Generator().manual_seed(0)
    many = torch.stack([random_rotation(g, reflect) for _ in range(500)])
    torch.testing.assert_close(many @ many.mT, torch.eye(3).double().expand_as(many))
    torch.testing.assert_close(torch.linalg.det(many), torch.full((500,), -1.0 if reflect else 1.0).double())
    assert many.mean(0).abs().max() < 0.1  # uniform: no direction preferred


@pytest.mark.parametrize(
    ("name", "group", "bond"),
    [
        ("rock salt", "Fm-3m", 2.820),
        ("fcc", "Fm-3m", 2.556),
        ("bcc", "Im-3m", 2.741),
        ("hexagonal", "P6_3/mmc", 3.197),
        ("perovskite", "Pm-3m", 1.953),
        ("alpha quartz", "P3_221", 1.604),
    ],
)
def test_reference_crystals(name: str, group: str, bond: float) -> None:
    from crystalml.convert import to_structures

    batch = REFERENCE_CRYSTALS[name]()
    assert to_structures(batch)[0].get_space_group_info()[0] == group
    assert float(min_distances(batch)) == pytest.approx(bond, abs=1e-3)


def test_quartz_has_a_mirror_image() -> None:
    from crystalml.convert import to_structures

    assert to_structures(alpha_quartz(mirror=True))[0].get_space_group_info()[0] == "P3_121"


def test_close_crystals_compare_on_the_torus() -> None:
    x = testing.fcc()
    assert_close_crystals(x.replace(frac=x.frac + 1 - 1e-9), x)
    with pytest.raises(AssertionError, match="positions"):
        assert_close_crystals(x.replace(frac=x.frac + 1e-3), x)
    with pytest.raises(AssertionError, match="lattice"):
        assert_close_crystals(x.replace(lattice=x.lattice * 1.01), x)
    with pytest.raises(AssertionError, match="elements"):
        assert_close_crystals(x.replace(numbers=x.numbers + 1), x)


def test_float32_is_looser_by_a_hundred() -> None:
    tight, loose = TOLERANCES[torch.float64], TOLERANCES[torch.float32]
    assert loose.rotation == pytest.approx(100 * tight.rotation)
    assert loose.padding == pytest.approx(100 * tight.padding)


def test_import_needs_no_test_runner_and_no_pymatgen() -> None:
    code = "import sys, crystalml.testing; sys.exit(bool({'pytest', 'pymatgen', 'ase'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
