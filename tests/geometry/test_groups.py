"""Failure is None, whichever way spglib has been told to report it."""

import numpy as np
import pytest
import spglib.error

from crystalml.geometry.groups import niggli_reduced, symmetry_dataset


@pytest.mark.parametrize("old", [True, False])
def test_failure_is_none_either_way(monkeypatch, old):
    monkeypatch.setattr(spglib.error, "OLD_ERROR_HANDLING", old)
    together = (4 * np.eye(3), [[0, 0, 0], [1e-4, 0, 0]], [1, 1])
    assert symmetry_dataset(together, 0.01) is None
    salt = (np.array([[0, 2.8, 2.8], [2.8, 0, 2.8], [2.8, 2.8, 0]]), [[0, 0, 0], [0.5, 0.5, 0.5]], [11, 17])
    assert symmetry_dataset(salt, 0.01).number == 225
    assert (niggli_reduced(np.zeros((3, 3))) == 0).all()
    skewed = np.array([[3.0, 0, 0], [9, 3, 0], [0, 0, 3]])
    assert np.allclose(np.linalg.norm(niggli_reduced(skewed), axis=1), 3)
