"""Formation energies as pymatgen entries, for phase diagrams alone or among Materials Project entries."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from crystalml.elements import atomic_number, symbol
from crystalml.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.analysis.phase_diagram import PhaseDiagram
    from pymatgen.core import Element, Structure
    from pymatgen.entries.computed_entries import ComputedStructureEntry


def computed_entry(
    structure: Structure | Atoms,
    energy: float,
    references: Mapping[str, float] | PhaseDiagram | None = None,
    data: Mapping[str, Any] | None = None,
) -> ComputedStructureEntry:
    """Energy E_f of a cell (eV, as `DaoCalculator` and `relax` give it) -> an entry of E_f + sum_Z n_Z mu_Z.

    references: mu_Z, the corrected energy per atom of each element among the other entries, or their
    PhaseDiagram, from which it is read. A formation energy in the MP2020 scheme becomes so the total energy
    that `MaterialsProject2020Compatibility` would have given the crystal, corrections included: the entry
    belongs among processed entries and must not be processed again. None: mu = 0, for a diagram of formation
    energies, whose corners are `element_entries`. Energies above the hull are the same in both.
    The entry's species are plain elements, as hulls want them, without charges, spins and isotopes; its id is
    "material_id" of data or of the structure's properties, if there is one.
    Raises InputError for an energy that is not finite, what is no element, or an element without reference.
    """
    from ase import Atoms
    from pymatgen.entries.computed_entries import ComputedStructureEntry
    from pymatgen.io.ase import AseAtomsAdaptor

    if isinstance(structure, Atoms):
        bare = structure.copy()
        bare.set_constraint()
        structure = AseAtomsAdaptor.get_structure(bare)
    if not abs(energy) < float("inf"):
        raise InputError(f"the energy of {structure.formula} is {energy} eV: no entry can be made of it")
    structure = _plain(structure)
    zero = 0.0
    if references is not None:
        mu = _mu(references)
        amounts = structure.composition.get_el_amt_dict()
        if missing := sorted(set(amounts) - set(mu)):
            raise InputError(
                f"no reference energy for {', '.join(missing)}: the elements' own entries are missing"
            )
        zero = sum(count * mu[name] for name, count in amounts.items())
    name = (data or {}).get("material_id", structure.properties.get("material_id"))
    return ComputedStructureEntry(structure, energy + zero, data=dict(data or {}), entry_id=name)


def element_entries(elements: str | Collection[str | Element]) -> list[ComputedStructureEntry]:
    """The elements at formation energy 0 by definition: the corners of a diagram of formation energies.

    elements: symbols, pymatgen Elements or a chemical system such as "Na-Cl". Boxes of one atom; only their
    composition counts. Raises UnknownElementError.
    """
    from pymatgen.core import Lattice, Structure

    given = elements.split("-") if isinstance(elements, str) else elements
    return [
        computed_entry(Structure(Lattice.cubic(10.0), [name], [[0, 0, 0]]), 0.0, data={"note": "reference"})
        for name in sorted({_symbol(item) for item in given})
    ]


def _plain(structure: Structure) -> Structure:
    """A copy of plain elements: Na+ or a spin would be an element of its own to a phase diagram."""
    from pymatgen.core import Composition

    plain = structure.copy()
    for site in plain:
        parts: dict[str, float] = {}
        for species, share in site.species.items():
            parts[_symbol(species)] = parts.get(_symbol(species), 0.0) + share
        site.species = Composition(parts)
    return plain


def _symbol(element: object) -> str:
    """Of an Element, a Species or a symbol; deuterium and tritium are hydrogen."""
    return symbol(atomic_number(str(getattr(element, "symbol", element)).strip()))


def _mu(references: Mapping[str, float] | PhaseDiagram) -> dict[str, float]:
    """Element symbol -> eV/atom."""
    if isinstance(references, Mapping):
        return {str(name): float(value) for name, value in references.items()}
    return {element.symbol: entry.energy_per_atom for element, entry in references.el_refs.items()}
