"""From a request to ranked structures: energies reorder, answers differ, and the same call gives the same."""

import math
from collections.abc import Callable

import pytest
import torch
from pymatgen.core import Lattice, Structure
from torch import Tensor

from crystalml.crystal import CrystalBatch
from crystalml.hybrid.predict import Denoising, Hybrid, Request, distinct
from crystalml.hybrid.rank import FEATURES, Ranker
from crystalml.models.model import CrystalModel
from crystalml.noise.product import CrystalNoise
from crystalml.prototypes import PrototypeAtlas
from crystalml.sample.probability_flow import ProbabilityFlow

BY_ENERGY = Ranker({name: -100.0 if name == "gap" else 0.0 for name in FEATURES})


@pytest.fixture(scope="module")
def atlas() -> PrototypeAtlas:
    sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
    return PrototypeAtlas.from_structures(
        [
            Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], sites),
            Structure.from_spacegroup("Fm-3m", Lattice.cubic(6.29), ["K", "Cl"], sites),
            Structure.from_spacegroup("Pm-3m", Lattice.cubic(4.12), ["Cs", "Cl"], sites),
        ]
    )


def cubic_is_low(x: CrystalBatch) -> dict[str, Tensor]:
    """An energy that prefers right angles: caesium chloride's cell to rock salt's."""
    unit = x.lattice / x.lattice.norm(dim=-1, keepdim=True)
    off = (unit @ unit.mT - torch.eye(3, dtype=x.dtype)).square().sum((1, 2))
    zero = torch.zeros_like(x.frac)
    energy = off * x.num_atoms
    return {"energy": energy, "energy_per_atom": off, "forces": zero, "stress": torch.zeros_like(x.lattice)}


def groups(structures: list[Structure]) -> list[int]:
    return [s.get_space_group_info()[1] for s in structures]


def test_chemistry_ranks_without_a_potential_and_energy_with_one(atlas: PrototypeAtlas) -> None:
    request = Request([{"K": 1, "Br": 1}])
    plain = Hybrid(atlas)([request], 2)[0]
    assert groups(plain) == [225, 221]
    assert sum(s.properties["probability"] for s in plain) == pytest.approx(1)
    assert all(math.isnan(s.properties["energy_per_atom"]) for s in plain)
    ranked = Hybrid(atlas, cubic_is_low, ranker=BY_ENERGY)([request], 2)[0]
    assert groups(ranked) == [221, 225]
    assert ranked[0].properties["energy_per_atom"] == pytest.approx(0, abs=1e-9)


def test_what_relaxation_tells_ranks_anew(atlas: PrototypeAtlas) -> None:
    """Chemistry prefers rock salt, and energies before relaxation are not asked; minima are."""
    request = Request([{"K": 1, "Br": 1}])
    score = {name: float(name == "score") for name in FEATURES}
    deep = Ranker(score, after={"log_share": 1.0, "depth": -1000.0, "believed": 0.0})
    two = Hybrid(atlas, cubic_is_low, ranker=deep)([request], 2)[0]
    assert groups(two) == [221, 225]
    assert sum(s.properties["probability"] for s in two) == pytest.approx(1)
    assert two[0].properties["minimum_energy"] < two[1].properties["minimum_energy"]
    one = Hybrid(atlas, cubic_is_low, ranker=deep)([request], 1)[0]
    assert groups(one) == [221]  # the best does not depend on how many are wanted
    unrelaxed = Hybrid(atlas, cubic_is_low, ranker=deep, relax_steps=0)([request], 2)[0]
    assert groups(unrelaxed) == [225, 221]


def test_requests_do_not_depend_on_each_other(atlas: PrototypeAtlas) -> None:
    hybrid = Hybrid(atlas, cubic_is_low, ranker=BY_ENERGY)
    requests = [Request([{"K": 1, "Br": 1}]), Request([{"Rb": 1, "I": 1}])]
    together, alone = hybrid(requests, 2), [hybrid([r], 2)[0] for r in requests]
    assert [[s.properties for s in row] for row in together] == [[s.properties for s in row] for row in alone]
    uneven = hybrid(requests, [1, 2])  # nor on how many of another are wanted
    assert [s.properties for s in uneven[0]] == [s.properties for s in hybrid(requests[:1], 1)[0]]
    assert [s.properties for s in uneven[1]] == [s.properties for s in alone[1]]


def test_a_space_group_and_several_cells(atlas: PrototypeAtlas) -> None:
    both = [{"K": 1, "Br": 1}, {"K": 2, "Br": 2}]
    found = Hybrid(atlas)([Request(both, space_group=221)], 5)[0]
    assert set(groups(found)) == {221} and {s.properties["cell"] for s in found} == {0}
    assert Hybrid(atlas)([Request([{"K": 1, "Br": 2}])], 5) == [[]]


def test_partial_noising_is_seeded_and_said(
    atlas: PrototypeAtlas, tiny_model: Callable[..., CrystalModel]
) -> None:
    noise = CrystalNoise.diffcsp(1000)
    flow = ProbabilityFlow(noise, 2, "euler", start=50)
    model, request = tiny_model(dtype=torch.float64), [Request([{"K": 1, "Br": 1}])]
    first, same, other = (
        Hybrid(atlas, denoising=Denoising(model, flow, seed))(request, 1)[0][0] for seed in (0, 0, 1)
    )
    assert first.properties["noise_level"] == 0.05
    assert (first.properties["denoiser"], first.properties["denoiser_steps"]) == ("custom", 2)
    assert "space_group" not in first.properties  # noise did not keep it
    assert first.lattice == same.lattice and first.lattice != other.lattice


def test_answers_differ() -> None:
    one = Structure(Lattice.cubic(3.0), ["Po"], [[0, 0, 0]])
    longer = Structure(Lattice.tetragonal(3.0, 4.0), ["Po"], [[0, 0, 0]])
    found = distinct([one, one.copy(), longer], 3)
    assert [s.properties["index"] for s in found] == [0, 1] and found[1].lattice.c == 4.0
