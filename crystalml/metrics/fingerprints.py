"""The two fingerprints by which CDVAE measures coverage: local order of the sites, and Magpie composition."""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core.composition import Composition
from pymatgen.core.structure import Structure

Array = NDArray[np.float64]

MAGPIE = Path(__file__).with_name("magpie.json")
_MAX_CN = 24


def structure_fingerprint(structure: Structure) -> Array | None:
    """(61,) mean over sites of matminer's CrystalNNFingerprint("ops"), None where CrystalNN fails on a site.

    For each coordination number 1..24 the weight that CrystalNN gives it, followed by that weight times the
    order parameter of each of its motifs (Zimmermann and Jain, RSC Adv. 10, 6063 (2020)). Computed with
    pymatgen alone, of which matminer's featurizer is a thin layer; no units, all entries in [0, 1].
    """
    from pymatgen.analysis.local_env import CrystalNN  # seconds to import

    finder = CrystalNN()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = [_site(structure, i, finder.get_nn_data(structure, i)) for i in range(len(structure))]
    except Exception:  # CrystalNN and qhull raise ValueError, RuntimeError, IndexError, QhullError, ...
        return None
    return np.mean(rows, axis=0)


def _site(structure: Structure, site: int, found: Any) -> list[float]:
    values = []
    for count in range(1, _MAX_CN + 1):
        weight = found.cn_weights.get(count, 0)
        values.append(weight)
        for motif in _motifs().get(count, ()):
            order = 0.0
            if weight:
                neighbors = [item["site"] for item in found.cn_nninfo[count]]
                places = list(range(1, len(neighbors) + 1))
                order = motif.get_order_parameters([structure[site], *neighbors], 0, indices_neighs=places)[0]
            values.append(weight * (order or 0.0))  # None where a motif is not defined
    return values


@cache
def _motifs() -> dict[int, list[Any]]:
    """The order parameters of each coordination number, in matminer's order."""
    from pymatgen.analysis.local_env import CN_OPT_PARAMS, LocalStructOrderParams

    named: dict[int, list[tuple[str, Any]]] = {1: [("sgl_bd", None)]}
    table: Any = CN_OPT_PARAMS
    for count, motifs in table.items():
        named[count] = [(kind[0], kind[1] if len(kind) > 1 else None) for kind in motifs.values()]
    for count in range(9, 13):  # no motif but the cuboctahedron: bond-orientational order
        named.setdefault(count, []).extend((name, None) for name in ("q2", "q4", "q6"))
    return {
        count: [LocalStructOrderParams([kind], parameters=[settings]) for kind, settings in motifs]
        for count, motifs in named.items()
    }


def composition_fingerprint(composition: Composition, standard: bool = True) -> Array:
    """(132,) Magpie features: 22 element properties x minimum, maximum, range, mean, mean deviation, mode.

    Ward et al., npj Comput. Mater. 2, 16028 (2016), as matminer's ElementProperty("magpie") gives them. With
    `standard` each is shifted and scaled by mean and standard deviation over the training crystals of MP-20.
    """
    table, means, deviations = _magpie()
    amounts = composition.fractional_composition.element_composition
    values = table[[element.Z - 1 for element in amounts]]
    weights = np.array(list(amounts.values()))
    mean = weights @ values
    commonest = np.isclose(weights, weights.max())
    columns = [
        values.min(axis=0),
        values.max(axis=0),
        np.ptp(values, axis=0),
        mean,
        weights @ np.abs(values - mean),
        values[commonest].min(axis=0),
    ]
    flat = np.stack(columns, axis=1).ravel()
    return (flat - means) / deviations if standard else flat


@cache
def _magpie() -> tuple[Array, Array, Array]:
    """(118, 22) element properties, (132,) means and (132,) standard deviations."""
    data = json.loads(MAGPIE.read_text())
    return np.array(data["elements"]), np.array(data["means"]), np.array(data["deviations"])
