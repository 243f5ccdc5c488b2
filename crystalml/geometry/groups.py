"""spglib, whichever way it reports failure.

It returns None or raises, depending on a switch of the whole process that other packages turn (phonopy does).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import spglib
from numpy.typing import NDArray

_FAILURE = getattr(spglib, "SpglibError", RuntimeError)  # older releases have no such name and return None


def symmetry_dataset(cell: Any, symprec: float) -> Any:
    """spglib's dataset of (lattice rows, fractional coordinates, numbers); None where it finds none."""
    return _quietly(spglib.get_symmetry_dataset, cell, symprec)


def niggli_reduced(lattice: NDArray[Any]) -> NDArray[Any]:
    """(3, 3) Niggli-reduced rows; the lattice as it is where spglib gives up."""
    found = _quietly(spglib.niggli_reduce, lattice)
    return lattice if found is None else np.asarray(found)


def delaunay_reduced(lattice: NDArray[Any], symprec: float) -> NDArray[Any]:
    """(3, 3) Delaunay-reduced rows; the lattice as it is where spglib gives up."""
    found = _quietly(spglib.delaunay_reduce, lattice, symprec)
    return lattice if found is None else np.asarray(found)


def _quietly(function: Callable[..., Any], *args: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the switch
        try:
            return function(*args)
        except _FAILURE:
            return None
