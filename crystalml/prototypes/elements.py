"""Properties by which chemists compare elements, as the prototypes need them: from pymatgen, cached."""

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Element

from crystalml.elements import MAX_Z, covalent_radii, element_features


@cache
def electronegativity(z: int) -> float:
    """Pauling's, 0.0 where none is known (He, Ne, Ar, superheavy elements)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns of every missing value
        value = float(Element.from_Z(z).X)
    return 0.0 if math.isnan(value) else value


@cache
def descriptors() -> NDArray[Any]:
    """(119, k) standardised descriptors by Z: one-hot bins of `element_features`, then X, radius, place."""
    smooth = np.zeros((MAX_Z + 1, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for z in range(1, MAX_Z + 1):
            element = Element.from_Z(z)
            place = element.mendeleev_no
            radius = float(covalent_radii()[z])
            smooth[z] = [electronegativity(z), radius, element.row, place or z]
    smooth[1:] = (smooth[1:] - smooth[1:].mean(0)) / smooth[1:].std(0)
    return np.concatenate([0.3 * element_features().numpy().astype(np.float64), smooth], 1)
