"""Relaxing keeps symmetry and trusts itself only near the start; noising by nothing changes nothing."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from torch import Tensor

from crystalml.convert import to_batch, to_structures
from crystalml.crystal import CrystalBatch
from crystalml.errors import InputError
from crystalml.hybrid.refine import Trust, between, denoise_all, judge_all, relax_all
from crystalml.models.model import CrystalModel
from crystalml.noise.product import CrystalNoise
from crystalml.predict import Predictor
from crystalml.sample.probability_flow import ProbabilityFlow


def salt(a: float) -> Structure:
    found = Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    return found.get_primitive_structure()


def spring(target: float) -> Callable[[CrystalBatch], dict[str, Tensor]]:
    """E = (log V / N - log target)^2 / 2 an atom: no forces, and a stress towards the target volume."""

    def potential(x: CrystalBatch) -> dict[str, Tensor]:
        off = (x.volume / x.num_atoms).log() - math.log(target)
        pressure = off * x.num_atoms / x.volume
        energy = x.num_atoms * off.square() / 2
        return {
            "energy": energy,
            "energy_per_atom": energy / x.num_atoms,
            "forces": torch.zeros_like(x.frac),
            "stress": pressure[:, None, None] * torch.eye(3, dtype=x.dtype),
        }

    return potential


def test_relaxation_reaches_the_minimum_within_the_group() -> None:
    start = salt(5.6)
    (end,) = relax_all([start], spring(22.9), steps=60, fmax=1e-4, trust=Trust(share=1.0))
    assert end.volume / len(end) == pytest.approx(22.9, rel=1e-3)
    assert end.get_space_group_info(symprec=1e-4)[1] == 225
    assert end.properties["relaxed"] and end.properties["relax_steps"] > 0
    assert start.volume == pytest.approx(salt(5.6).volume)  # the proposal is left alone


def test_an_answer_lies_between_start_and_minimum() -> None:
    """Shape and coordinates go a share of the way, the volume all of it, and symmetry stays."""
    sites = [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.36]]
    group, species = "P6_3mc", ["Zn", "O"]
    first = Structure.from_spacegroup(group, Lattice.hexagonal(3.2, 5.0), species, sites)
    sites[1][2] = 0.40
    last = Structure.from_spacegroup(group, Lattice.hexagonal(3.3, 5.5), species, sites)
    start, end = (to_batch(structure, dtype=torch.float64) for structure in (first, last))
    for share in (0.0, 0.5, 1.0):
        found = to_structures(between(start, end, share))[0]
        assert found.get_space_group_info(symprec=1e-4) == (group, 186)
        assert found.volume == pytest.approx(last.volume)
        ratio = (1 - share) * np.array([3.2, 5.0]) + share * np.array([3.3, 5.5])
        assert found.lattice.c / found.lattice.a == pytest.approx(ratio[1] / ratio[0])
        heights = (found.frac_coords[2:, 2] - found.frac_coords[0, 2]) % 1.0  # of oxygen over zinc
        assert heights.min() == pytest.approx(0.36 + 0.04 * share)


def test_energies_are_those_of_the_answers() -> None:
    potential = spring(22.9)
    (end,) = relax_all([salt(5.6)], potential, steps=2)
    energy = float(potential(to_batch(end, dtype=torch.float64))["energy_per_atom"])
    assert end.properties["energy_per_atom"] == pytest.approx(energy)


def test_a_relaxation_that_leads_far_away_is_not_believed() -> None:
    start = salt(5.6)
    (end,) = relax_all([start], spring(80.0), steps=200, trust=Trust(swelling=0.1))
    assert not end.properties["relaxed"] and end.properties["relax_steps"] == 0
    assert end.volume == pytest.approx(start.volume)


def test_energies_and_forces_of_all(tiny_model: Callable[..., CrystalModel]) -> None:
    predictor = Predictor(tiny_model(dtype=torch.float64))
    both = judge_all([salt(5.6), salt(6.0)], predictor)
    alone = judge_all([salt(6.0)], predictor)[0]
    assert both[1].energy == pytest.approx(alone.energy) and both[1].force == pytest.approx(alone.force)
    assert judge_all([], predictor) == []


def test_denoising_from_a_low_level_stays_near(tiny_model: Callable[..., CrystalModel]) -> None:
    model, noise = tiny_model(dtype=torch.float64), CrystalNoise.diffcsp(1000)
    start = [salt(5.6), salt(6.0)]
    low = denoise_all(start, model, ProbabilityFlow(noise, 1, "euler", start=1), [1, 2])
    matcher = StructureMatcher(scale=False, primitive_cell=False, stol=0.1)
    assert all(matcher.fit(a, b) for a, b in zip(start, low, strict=True))
    again = denoise_all(start[1:], model, ProbabilityFlow(noise, 1, "euler", start=1), [2])
    assert np.allclose(again[0].lattice.matrix, low[1].lattice.matrix)
    with pytest.raises(InputError, match="start"):
        denoise_all(start, model, ProbabilityFlow(noise, 5), [1, 2])
