"""The volume model recovers a law of its own kind and knows that a volume is one of the composition."""

import numpy as np
import pytest

from crystalml.elements import covalent_radii
from crystalml.prototypes.volume import VolumeModel, fit_volume


def test_volumes_of_its_own_kind_are_recovered() -> None:
    generator = np.random.default_rng(0)
    fractions = np.zeros((3000, 119))
    chosen = np.array([3, 8, 9, 11, 12, 17, 20, 26])
    fractions[:, chosen] = generator.dirichlet(np.full(len(chosen), 0.3), 3000)
    own = np.zeros(119)
    own[chosen] = generator.normal(0.5, 0.2, len(chosen))
    cubes = covalent_radii().numpy().astype(float) ** 3
    volumes = np.exp(np.log(fractions @ cubes) + fractions @ own)
    model = fit_volume(fractions, volumes)
    assert model.error < 0.01
    assert model.log_volume([11, 17], [1, 1]) == pytest.approx(
        np.log(cubes[[11, 17]].mean()) + own[[11, 17]].mean(), abs=0.02
    )
    assert model.log_volume([11, 17], [1, 1]) == pytest.approx(model.log_volume([17, 11], [4, 4]))


def test_tensors_round_trip() -> None:
    model = VolumeModel(np.random.default_rng(0).normal(size=(119, 119)).astype(np.float32), 0.5)
    other = VolumeModel.from_tensors(model.tensors())
    assert other.log_volume([3, 8], [2, 1]) == model.log_volume([3, 8], [2, 1])
