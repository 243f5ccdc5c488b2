"""Embedders: anything that gives one row a crystal, and a clear word where it does not."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystalml.errors import InputError
from crystalml.metrics.embedding import Embedder, as_embedder

CRYSTALS = [Structure(Lattice.cubic(a), ["Na"], [[0, 0, 0]]) for a in (3.0, 4.0)]


class Transformer:
    """In the manner of scikit-learn and matminer."""

    def transform(self, structures):
        return [[s.volume, s.density] for s in structures]


def volumes(structures):
    return np.array([[s.volume] for s in structures])


@pytest.mark.parametrize(("thing", "name"), [(Transformer(), "Transformer"), (volumes, "volumes")])
def test_objects_and_functions(thing, name) -> None:
    embedder = as_embedder(thing)
    assert isinstance(embedder, Embedder) and embedder.name == name
    assert embedder(CRYSTALS)[:, 0] == pytest.approx([27, 64])
    assert as_embedder(thing, "mine").name == "mine"


def test_wrong_shapes_and_wrong_things_are_refused() -> None:
    with pytest.raises(InputError, match=r"one row for each of 2 .* \(2,\)"):
        as_embedder(lambda structures: [s.volume for s in structures])(CRYSTALS)
    with pytest.raises(InputError, match="one row"):
        as_embedder(lambda structures: np.zeros((1, 4)))(CRYSTALS)
    with pytest.raises(InputError, match="no embedder"):
        as_embedder(3)
