"""Space groups obey the laws of groups, and cells those of metrics."""

import numpy as np
import pytest

from crystalml.prototypes import symmetry

HALLS = [symmetry.hall_number(n) for n in (1, 2, 5, 14, 62, 99, 139, 148, 160, 166, 186, 194, 216, 225, 227)]


@pytest.mark.parametrize("hall", HALLS)
def test_an_orbit_is_closed(hall: int) -> None:
    rotations, translations = symmetry.operations(hall)
    points, which = symmetry.orbit(hall, np.array([0.11, 0.23, 0.37]))
    assert len(points) == len(rotations)  # a general position
    for rotation, shift in zip(rotations, translations, strict=True):
        moved = points @ rotation.T + shift
        assert (np.abs(symmetry.wrapped(moved[:, None] - points)).max(2) < 1e-9).any(1).all()
    again = (rotations[which] @ np.array([0.11, 0.23, 0.37]) + translations[which]) % 1
    np.testing.assert_allclose(again, points, atol=1e-12)


@pytest.mark.parametrize("hall", HALLS)
def test_normaliser_maps_the_group_onto_itself(hall: int) -> None:
    group = {rotation.tobytes() for rotation in symmetry.operations(hall)[0]}
    changes = symmetry.normaliser(hall)
    assert (changes[0] == np.eye(3)).all()
    for change in changes[:50]:
        inverse = np.rint(np.linalg.inv(change)).astype(np.int64)
        conjugates = {
            np.ascontiguousarray(change @ r @ inverse).tobytes() for r in symmetry.operations(hall)[0]
        }
        assert conjugates == group


def test_snap_is_exact_and_idempotent() -> None:
    hall = symmetry.hall_number(225)
    found = symmetry.snap(hall, np.array([0.2504, 0.2498, 0.2501]))
    np.testing.assert_allclose(found, 0.25, atol=1e-12)
    general = np.array([0.11, 0.23, 0.37])
    np.testing.assert_array_equal(symmetry.snap(hall, general), general)


def test_parameters_and_vectors_are_inverse() -> None:
    cell = np.array([4.1, 5.2, 6.3, 81.0, 95.0, 107.0])
    np.testing.assert_allclose(symmetry.parameters(symmetry.vectors(cell)), cell)


@pytest.mark.parametrize(
    ("number", "free"), [(225, 1), (194, 2), (166, 2), (139, 2), (62, 3), (14, 4), (2, 6)]
)
def test_symmetric_cells_have_the_freedom_of_their_system(number: int, free: int) -> None:
    cell = np.array([4.1, 5.2, 6.3, 81.0, 95.0, 107.0])
    jacobian = [
        symmetry.symmetric_cell(number, cell * (1 + 1e-6 * row)) - symmetry.symmetric_cell(number, cell)
        for row in np.eye(6)
    ]
    assert np.linalg.matrix_rank(np.array(jacobian), tol=1e-9) == free
