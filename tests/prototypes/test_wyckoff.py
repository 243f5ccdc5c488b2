"""Crystals sampled within a group have it, whatever the network says."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pymatgen.core import Structure

from crystalml.convert import to_structures
from crystalml.errors import InputError
from crystalml.models.model import CrystalModel
from crystalml.noise.product import CrystalNoise
from crystalml.prototypes import PrototypeAtlas
from crystalml.prototypes.symmetry import vectors
from crystalml.prototypes.wyckoff import group_of, orbits, place, primitive_vectors
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
    drawn = [orbits(group, *place(group, CELLS[number], seed)) for seed in range(3)]
    x = template([numbers for _, numbers in drawn], dtype=torch.float64)
    law, model, seeds = Symmetric.of([shape for shape, _ in drawn]), tiny_model(dtype=torch.float64), 3
    draws = law.draws(as_draws(torch.arange(seeds), x), x)
    for sampler in (ProbabilityFlow(noise, 6), PredictorCorrector(noise, 12)):
        out = sampler.sample(law.denoiser(model.denoise), x, draws, None, law.hold)
        for structure in to_structures(out):
            structure.scale_lattice(10.0 * len(structure))  # an untrained network draws any size
            assert structure.get_space_group_info(symprec=1e-5)[1] == number


def test_what_cannot_be_placed_is_refused() -> None:
    atlas = PrototypeAtlas.default()
    with pytest.raises(InputError, match="formula units"):
        place(group_of(atlas, 225), [11, 17, 19], 0)  # only two sites hold a single atom
    with pytest.raises(InputError, match="231"):
        group_of(atlas, 231)
    with pytest.raises(InputError, match="no crystal with space group 225"):
        group_of(PrototypeAtlas.from_structures([]), 225)
