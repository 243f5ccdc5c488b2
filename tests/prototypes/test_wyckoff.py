"""Crystals sampled within a group have it, whatever the network says."""

from collections import Counter
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from pymatgen.core import Structure
from torch import Tensor

from crystalml.convert import to_structures
from crystalml.crystal import CrystalBatch, Tangent
from crystalml.errors import InputError
from crystalml.geometry import lie
from crystalml.guidance import EnergyGuidance
from crystalml.models.model import CrystalModel
from crystalml.noise.product import CrystalNoise
from crystalml.noise.rng import Draws
from crystalml.prototypes import PrototypeAtlas
from crystalml.prototypes.symmetry import space_group, vectors
from crystalml.prototypes.wyckoff import Group, can_place, group_of, orbits, place, primitive_vectors
from crystalml.sample.base import as_draws
from crystalml.sample.predictor_corrector import PredictorCorrector
from crystalml.sample.probability_flow import ProbabilityFlow
from crystalml.sample.symmetric import Symmetric
from crystalml.sample.template import template

CELLS = {
    225: [11, 17],
    227: [12] * 2 + [13] * 4 + [8] * 8,
    194: [22] * 2 + [6] * 2 + [14] * 2,
    166: [29, 13, 8, 8],
    62: [20] * 4 + [22] * 4 + [8] * 12,
    12: [3] * 2 + [25] * 2 + [8] * 4,
    2: [6] * 4,
}


@pytest.mark.parametrize("number", CELLS)
def test_free_coordinates_anywhere_keep_the_group(number: int) -> None:
    group = group_of(PrototypeAtlas.default(), number)
    sites, elements = place(group, CELLS[number], 0)
    shape, numbers = orbits(group, sites, elements)
    assert Counter(numbers) == Counter(CELLS[number])
    assert sum(site.multiplicity for site in sites) == len(numbers)
    cell = primitive_vectors(group.hall) @ vectors(np.array(group.cell)) * 2.2
    move = shape.spread() @ torch.rand(3 * len(numbers), generator=torch.Generator().manual_seed(1)).double()
    frac = shape.origin + move.view(-1, 3)
    assert Structure(cell, numbers, frac.numpy()).get_space_group_info(symprec=1e-4)[1] == number
    flat = torch.from_numpy(cell.reshape(9))
    torch.testing.assert_close(shape.lattice @ flat, flat)


@pytest.mark.parametrize("number", [227, 194, 12])
def test_samples_of_an_untrained_network_have_the_group(
    number: int, tiny_model: Callable[..., CrystalModel]
) -> None:
    noise, group = CrystalNoise.diffcsp(1000), group_of(PrototypeAtlas.default(), number)
    law, x, draws = problem(group, number, noise)
    model = tiny_model(dtype=torch.float64)
    for sampler in (ProbabilityFlow(noise, 6), PredictorCorrector(noise, 12)):
        for guide in (None, law.guide(EnergyGuidance(model, 50.0))):
            out = sampler.sample(law.denoiser(model.denoise), x, draws, guide, law.hold)
            assert_group(out, number)


def problem(group: Group, number: int, noise: CrystalNoise) -> tuple[Symmetric, CrystalBatch, Draws]:
    drawn = [orbits(group, *place(group, CELLS[number], seed)) for seed in range(3)]
    x = template([numbers for _, numbers in drawn], dtype=torch.float64)
    law = Symmetric.of([shape for shape, _ in drawn], noise.lattice)
    return law, x, law.draws(as_draws(torch.arange(3), x), x)


def assert_group(x: CrystalBatch, number: int) -> None:
    for structure in to_structures(x):
        structure.scale_lattice(10.0 * len(structure))  # an untrained network draws any size
        assert structure.get_space_group_info(symprec=1e-5)[1] == number


@pytest.mark.parametrize("number", [225, 166, 12])
@pytest.mark.parametrize("mode", ["diffuse", "predict"])
def test_the_same_where_cells_are_symmetric_matrices(
    number: int, mode: Literal["diffuse", "predict"]
) -> None:
    """The network sees what it is trained on, and the volume is its own."""
    noise, group = CrystalNoise.gemsdiff(20, lattice_mode=mode), group_of(PrototypeAtlas.default(), number)
    law, x, draws = problem(group, number, noise)

    def denoise(x: CrystalBatch, t: Tensor) -> Tangent:
        log = torch.diag(torch.tensor([1.0, 1.2, 1.5])).double() + 0.1
        return Tangent(lattice=log.expand(len(x), 3, 3), frac=torch.sin(torch.arange(3) + 9 * x.frac))

    out = PredictorCorrector(noise, corrector=False).sample(law.denoiser(denoise), x, draws, None, law.hold)
    assert_group(out, number)
    torch.testing.assert_close(out.volume.log(), torch.full((3,), 4.0).double(), atol=0.2, rtol=0)


def test_every_groups_own_cells_are_left_as_they_are() -> None:
    atlas, cells = PrototypeAtlas.default(), CrystalNoise.gemsdiff(20).lattice
    numbers = sorted({space_group(int(hall))[0] for hall in atlas.tables.hall})
    for number in numbers:
        group = group_of(atlas, number)
        shape, _ = orbits(group, group.sites[:1], [1])
        law = Symmetric.of([shape], cells)
        own = torch.from_numpy(primitive_vectors(group.hall) @ vectors(np.array(group.cell)))[None]
        symmetric = torch.matrix_exp(lie.polar(own)[0])
        torch.testing.assert_close(law.cells(symmetric), symmetric, msg=f"group {number}")
        torch.testing.assert_close(law.cells(own @ lie.polar(own)[1].mT), symmetric)


def test_what_can_be_placed_is_whatever_the_seed() -> None:
    atlas = PrototypeAtlas.default()
    pyrite, iron_silicide = group_of(atlas, 205), group_of(atlas, 198)
    assert can_place(pyrite, [26] * 4 + [16] * 8) and not can_place(pyrite, [26] * 2 + [16] * 4)
    assert can_place(iron_silicide, [26] * 4 + [14] * 4) and not can_place(iron_silicide, [26, 14])
    for number in (205, 216, 194, 62):
        group = group_of(atlas, number)
        for amounts in ((4, 8), (1, 1), (4, 4, 12), (2, 2), (8, 16), (3, 5), (24, 12)):
            numbers = [z for z, count in zip((26, 16, 8), amounts, strict=False) for _ in range(count)]
            for seed in range(3):
                if can_place(group, numbers):
                    sites, elements = place(group, numbers, seed)
                    filled = Counter[int]()
                    for site, z in zip(sites, elements, strict=True):
                        filled[z] += site.multiplicity
                    assert filled == Counter(numbers)
                    assert max(Counter(s.letter for s in sites if s.fixed).values(), default=1) == 1
                else:
                    with pytest.raises(InputError, match="no way to place"):
                        place(group, numbers, seed)


def test_what_cannot_be_placed_is_refused() -> None:
    atlas = PrototypeAtlas.default()
    with pytest.raises(InputError, match="formula units"):
        place(group_of(atlas, 225), [11, 17, 19], 0)  # only two sites hold a single atom
    with pytest.raises(InputError, match="231"):
        group_of(atlas, 231)
    with pytest.raises(InputError, match="no crystal with space group 225"):
        group_of(PrototypeAtlas.from_structures([]), 225)
