"""Structure prediction by substitution: the target's elements on the sites of known prototypes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import exp, gcd
from typing import TYPE_CHECKING, Any

import numpy as np
from pymatgen.core import Structure

from crystalml.composition import whole_number
from crystalml.convert import space_group_of
from crystalml.elements import covalent_radii, symbol
from crystalml.prototypes.atlas import Candidate, PrototypeAtlas, logsumexp
from crystalml.prototypes.fingerprint import Distinct
from crystalml.prototypes.symmetry import space_group as group

if TYPE_CHECKING:
    from pymatgen.core import Composition

SUPERCELL = 5.0  # log odds against a crystal being an exact supercell of a smaller prototype
SYMPREC = 1e-3  # Angstrom, for the group of a crystal that has it exactly but for float32
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

    composition: the atoms of the cell, or with num_atoms a formula that is multiplied to that many.
    Prototypes that fit in size and amounts come first as a rule, then those with one colour too many or too
    few (`derive`) and supercells of smaller ones. distinct leaves out what is the same as an earlier,
    likelier prediction. same_formula=False leaves crystals of this very composition out of the evidence.
    Fewer than n come back, with a warning if none, when the atlas knows no more. Raises InputError for
    numbers that are not whole or too small, and CompositionError.

    Primitive Niggli cells, exact in their space group; provenance is in `structure.properties`: prototype,
    prototype_id, space_group, score (log of the probability among the candidates), probability, template
    (the elements of the closest crystal seen, in the order of `elements`), source.
    """
    n = whole_number(n, 0, "n, the structures wanted,")
    if num_atoms is not None:
        num_atoms = whole_number(num_atoms, 1, "num_atoms")
    source = PrototypeAtlas.default() if atlas is None else atlas
    found: list[Structure] = []
    new = Distinct()
    content = _content(source, composition, num_atoms)
    for structure in predictions([content], source, same_formula) if n else ():
        if distinct and not new(structure):
            continue
        del structure.properties["cell"]
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
    compositions: Sequence[str | Composition | Mapping[Any, float]],
    atlas: PrototypeAtlas,
    same_formula: bool = True,
    space_group: int | None = None,
) -> Iterator[Structure]:
    """Everything the atlas has for the cells, likeliest first, but for sites too close for their elements.

    compositions: the atoms of each cell in question, such as one formula with several numbers of units.
    Scores are shares among the candidates of all of them. space_group: only prototypes of this group.
    `structure.properties["cell"]` is the place of the structure's composition.
    """
    found: list[tuple[float, int, int, Candidate]] = []
    for place, composition in enumerate(compositions):
        numbers, counts = atlas.cell_content(composition)
        for multiple in _divisors(gcd(*counts)):
            cell = {symbol(int(z)): count // multiple for z, count in zip(numbers, counts, strict=True)}
            for candidate in atlas.candidates(cell, same_formula=same_formula):
                if space_group in (None, _group_of(atlas, candidate)):
                    evidence = candidate.evidence - SUPERCELL * (multiple > 1)
                    found.append((evidence, place, multiple, candidate))
    total = logsumexp([item[0] for item in found]) if found else 0.0
    found.sort(key=lambda item: (-item[0], item[1], item[2], item[3].prototype, item[3].species))
    for evidence, place, multiple, candidate in found:
        structure = atlas.realise(candidate, same_formula)
        if _fits(structure):
            if multiple > 1:
                structure = _supercell(structure, multiple)
            notes = provenance(atlas, replace(candidate, score=evidence - total), multiple)
            if candidate.kind == "merged" and (actual := space_group_of(structure, SYMPREC)) is not None:
                notes["space_group_symbol"], notes["space_group"] = actual  # equal elements may add symmetry
            if space_group not in (None, notes["space_group"]):
                continue
            structure.properties.update(notes, cell=place)
            yield structure


def _group_of(atlas: PrototypeAtlas, candidate: Candidate) -> int:
    return group(int(atlas.tables.hall[candidate.prototype]))[0]


def provenance(atlas: PrototypeAtlas, candidate: Candidate, multiple: int = 1) -> dict[str, Any]:
    number, name = group(int(atlas.tables.hall[candidate.prototype]))
    return {
        "strategy": "prototype",
        "prototype": atlas.label(candidate.prototype),
        "prototype_id": candidate.prototype,
        "space_group": number,
        "space_group_symbol": name,
        "score": candidate.score,
        "probability": exp(candidate.score),
        "derived": candidate.kind,
        "elements": _by_colour(atlas, candidate),
        "template": [symbol(z) for z in candidate.template],
        "supercell": multiple,
        "source": str(atlas.card.get("name", "custom")),
    }


def _content(
    atlas: PrototypeAtlas, composition: str | Composition | Mapping[Any, float], num_atoms: int | None
) -> dict[str, int]:
    numbers, counts = atlas.cell_content(composition, num_atoms)
    return {symbol(int(z)): count for z, count in zip(numbers, counts, strict=True)}


def _by_colour(atlas: PrototypeAtlas, candidate: Candidate) -> list[str]:
    """What is on each colour: a symbol, or several such as "Fe/Mn"."""
    found: dict[int, list[str]] = {}
    for colour, z in zip(
        atlas.tables.colours_of(candidate.prototype).tolist(), candidate.species, strict=True
    ):
        if symbol(z) not in found.setdefault(colour, []):
            found[colour].append(symbol(z))
    return ["/".join(found[colour]) for colour in sorted(found)]


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
