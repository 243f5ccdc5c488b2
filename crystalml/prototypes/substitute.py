"""Structure prediction by substitution: the target's elements on the sites of known prototypes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from math import exp, gcd
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from crystalml.elements import covalent_radii, symbol
from crystalml.errors import InputError
from crystalml.prototypes.atlas import Candidate, PrototypeAtlas
from crystalml.prototypes.fingerprint import alike, fingerprint
from crystalml.prototypes.symmetry import space_group

if TYPE_CHECKING:
    from pymatgen.core import Composition

TOO_CLOSE = 0.6  # of the sum of covalent radii: nearer atoms, and the prototype does not fit the elements


def substitute(
    composition: str | Composition | Mapping[Any, float],
    n: int = 20,
    *,
    num_atoms: int | None = None,
    atlas: PrototypeAtlas | None = None,
    distinct: bool = True,
    same_formula: bool = True,
    warn: bool = True,
) -> list[Structure]:
    """Up to n crystals of the composition, likeliest prototype first.

    composition: the atoms of the cell, or with num_atoms a formula that is multiplied to that many. Where the
    atlas has too few prototypes of that size, supercells of smaller ones follow. distinct leaves out what
    is the same as an earlier, likelier prediction. same_formula=False leaves crystals of this very
    composition out of the evidence. Fewer than n come back, with a warning if none, when the atlas
    knows no more.

    Primitive Niggli cells, exact in their space group; provenance is in `structure.properties`: prototype,
    prototype_id, space_group, score (log of the probability among the candidates), probability, template
    (the elements of the closest crystal seen, in the order of `elements`), source.
    """
    if n < 0 or int(n) != n:
        raise InputError(f"n must be a whole number of structures, 0 or more, not {n!r}.")
    source = PrototypeAtlas.default() if atlas is None else atlas
    found: list[Structure] = []
    seen: list[NDArray[Any]] = []
    for structure in predictions(composition, source, num_atoms, same_formula) if n else ():
        if distinct:
            shape = fingerprint(structure)
            if any(alike(shape, earlier) for earlier in seen):
                continue
            seen.append(shape)
        structure.properties["index"] = len(found)
        found.append(structure)
        if len(found) == n:
            break
    if n and not found and warn:
        warnings.warn(
            f"the atlas has no prototype for {composition!r}"
            + (f" with {num_atoms} atoms" if num_atoms else "")
            + "; try other formula units, or diffusion",
            stacklevel=2,
        )
    return found


def predictions(
    composition: str | Composition | Mapping[Any, float],
    atlas: PrototypeAtlas,
    num_atoms: int | None = None,
    same_formula: bool = True,
) -> Iterator[Structure]:
    """Everything the atlas has, likeliest first; sites too close for their elements are left out."""
    numbers, counts = atlas.cell_content(composition, num_atoms)
    for multiple in _divisors(gcd(*counts)):
        cell = {symbol(int(z)): count // multiple for z, count in zip(numbers, counts, strict=True)}
        for candidate in atlas.candidates(cell, same_formula=same_formula):
            structure = atlas.instantiate(candidate.prototype, candidate.elements, candidate.volume)
            if _fits(structure):
                if multiple > 1:
                    structure = _supercell(structure, multiple)
                structure.properties.update(provenance(atlas, candidate, multiple))
                yield structure


def provenance(atlas: PrototypeAtlas, candidate: Candidate, multiple: int = 1) -> dict[str, Any]:
    number, name = space_group(int(atlas.tables.hall[candidate.prototype]))
    return {
        "strategy": "prototype",
        "prototype": atlas.label(candidate.prototype),
        "prototype_id": candidate.prototype,
        "space_group": number,
        "space_group_symbol": name,
        "score": candidate.score,
        "probability": exp(candidate.score),
        "elements": [symbol(z) for z in candidate.elements],
        "template": [symbol(z) for z in candidate.template],
        "supercell": multiple,
        "source": str(atlas.card.get("name", "custom")),
    }


def _divisors(count: int) -> list[int]:
    return [k for k in range(1, count + 1) if count % k == 0]


def _fits(structure: Structure) -> bool:
    """Whether no atom is too close to another or to its own image."""
    radii = covalent_radii().numpy()[[site.specie.Z for site in structure]]
    distances = structure.distance_matrix
    np.fill_diagonal(distances, np.inf)
    apart = (distances >= TOO_CLOSE * (radii[:, None] + radii)).all()
    return bool(apart and min(structure.lattice.abc) >= TOO_CLOSE * 2 * radii.max())


def _supercell(structure: Structure, multiple: int) -> Structure:
    """`multiple` cells, the shortest vector repeated again and again so that the cell stays compact."""
    out = structure.copy()
    for factor in _factors(multiple):
        scaling = [1, 1, 1]
        scaling[int(np.argmin(out.lattice.abc))] = factor
        out = out.make_supercell(scaling, in_place=False)
    return out


def _factors(count: int) -> list[int]:
    """Prime factors, largest first."""
    out, k = [], 2
    while count > 1:
        while count % k == 0:
            out.append(k)
            count //= k
        k += 1
    return out[::-1]
