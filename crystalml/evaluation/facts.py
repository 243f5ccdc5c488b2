"""What is worked out of each crystal on its own: geometry, symmetry, fingerprints, energy, relaxed form."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from pymatgen.core import Structure

from crystalml.convert import space_group_of, to_batch
from crystalml.elements import atomic_number
from crystalml.errors import UnsupportedError
from crystalml.metrics.fingerprints import structure_fingerprint
from crystalml.metrics.validity import is_valid_composition, is_valid_structure
from crystalml.models.model import CrystalModel
from crystalml.predict import Predictor
from crystalml.relax import relax

SYMPREC = 0.1  # Angstrom, the Materials Project's choice
MIN_ATOM_VOLUME = 0.5  # A^3 an atom: denser than any matter at hand, with thousands of neighbours each
_CHUNK = 256  # crystals between two writes


def parts(structures: Sequence[Structure], size: int = _CHUNK) -> Iterator[list[Structure]]:
    for start in range(0, len(structures), size):
        yield list(structures[start : start + size])


def basic(structure: Structure) -> dict[str, Any]:
    """Validity, density (g/cm^3), volume (A^3/atom), number of elements, space group number at SYMPREC."""
    sound = is_valid_structure(structure)
    return {
        "valid_structure": sound,
        "valid_composition": _composition(structure),
        "density": float(structure.density),
        "volume_per_atom": structure.volume / len(structure),
        "elements": len(structure.composition),
        "spacegroup": spacegroup(structure) if sound else 1,
    }


def _composition(structure: Structure) -> bool | None:
    """None without SMACT: not known, rather than wrong."""
    try:
        return is_valid_composition(structure.composition)
    except UnsupportedError:
        return None


def spacegroup(structure: Structure) -> int:
    """International number by spglib; 1 where it finds none."""
    found = space_group_of(structure, SYMPREC)
    return found[1] if found else 1


def local_order(structure: Structure) -> list[float] | None:
    """`structure_fingerprint`, rounded for the store."""
    found = structure_fingerprint(structure)
    return None if found is None else [round(x, 6) for x in found.tolist()]


class Energies:
    """Energy per atom (eV) of many crystals by one model; NaN for elements that it has not seen."""

    def __init__(self, model: CrystalModel) -> None:
        self.model = model
        self._predictor = Predictor(model)
        self._known = frozenset(atomic_number(s) for s in model.card.get("elements") or ())

    def __call__(self, structures: Sequence[Structure]) -> Iterator[float]:
        for part in parts(structures):
            able = [i for i, structure in enumerate(part) if self._can(structure)]
            values = [float("nan")] * len(part)
            if able:
                with torch.no_grad():
                    x = to_batch([part[i] for i in able])
                    found = self._predictor(x, forces=False)["energy_per_atom"].tolist()
                for i, value in zip(able, found, strict=True):
                    values[i] = value
            yield from values

    def _can(self, structure: Structure) -> bool:
        if structure.volume / len(structure) < MIN_ATOM_VOLUME:
            return False
        return not self._known or {site.specie.Z for site in structure} <= self._known


class Relaxer:
    """Relaxed crystals by one potential, as plain dictionaries; None for those that cannot be relaxed."""

    def __init__(self, model: CrystalModel, steps: int) -> None:
        self._model, self._steps = model, steps

    def __call__(self, structures: Sequence[Structure]) -> Iterator[dict[str, Any] | None]:
        for part in parts(structures):
            sound = [is_valid_structure(s) and s.volume / len(s) >= MIN_ATOM_VOLUME for s in part]
            able = [structure for structure, ok in zip(part, sound, strict=True) if ok]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # failures are None here, and counted
                found = relax(able, self._model, max_steps=self._steps, progress=False)
            results = iter(found)
            for ok in sound:
                result = next(results) if ok else None
                yield plain(result) if result is not None and not result["error"] else None


def plain(result: Any) -> dict[str, Any]:
    """What is kept of a relaxation: crystal, eV/atom, whether it converged."""
    final: Structure = result["final_structure"]
    return {
        "lattice": [round(x, 6) for x in final.lattice.matrix.ravel().tolist()],
        "frac": [round(x, 6) for x in final.frac_coords.ravel().tolist()],
        "species": [site.specie.symbol for site in final],
        "energy_per_atom": result["energy"] / len(final),
        "converged": bool(result["converged"]),
    }


def from_plain(row: dict[str, Any]) -> Structure:
    lattice = [row["lattice"][i : i + 3] for i in (0, 3, 6)]
    frac = [row["frac"][i : i + 3] for i in range(0, len(row["frac"]), 3)]
    return Structure(lattice, row["species"], frac)


@cache
def crystal_system(number: int) -> str:
    """The crystal system of a space group number."""
    ends = {2: "triclinic", 15: "monoclinic", 74: "orthorhombic", 142: "tetragonal", 167: "trigonal"}
    ends |= {194: "hexagonal", 230: "cubic"}
    return next(name for last, name in ends.items() if number <= last)
