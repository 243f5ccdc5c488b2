"""Crystals of the Cambridge Structural Database, chosen as NeuralCrystal chose them.

The CSD is licensed: reading it needs the CSD Python API (package `ccdc`) and a licence. The four filters
work on any pymatgen structure and need neither.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pymatgen.core import Structure

from crystalml.convert import to_batch
from crystalml.crystal import CrystalBatch
from crystalml.datasets.packed import PackedDataset
from crystalml.elements import covalent_radii, symbol
from crystalml.errors import CrystalMLError, UnsupportedError
from crystalml.geometry.neighbors import neighbor_list

BOND = 0.4  # Angstrom beyond the sum of covalent radii: the CSD's own rule
MIN_DISTANCE = 0.5  # Angstrom; closer atoms are an error of the entry
_LONGEST = 2 * 2.6 + BOND  # francium's radius twice


@dataclass(frozen=True)
class Bonded:
    """What bonds make of a crystal. labels: (n,) the piece of each atom. formulas: one a piece.

    polymer: whether some piece is bonded to its own image, so that it has no end.
    """

    labels: NDArray[np.int64]
    formulas: list[str]
    polymer: bool


def bonded(x: CrystalBatch) -> Bonded:
    """The bonded pieces of one crystal: pairs within the sum of covalent radii + 0.4 Angstrom, all images.

    Walking along bonds gives every atom of a piece an image; a bond that disagrees with them leads to another
    image of the same piece, which then has no end.
    """
    pairs = neighbor_list(x, _LONGEST)
    radii = covalent_radii().to(x.dtype)
    near = pairs.distance < radii[x.numbers[pairs.i]] + radii[x.numbers[pairs.j]] + BOND
    i, j, shift = (value[near].numpy() for value in (pairs.i, pairs.j, pairs.shift))
    n = len(x.numbers)
    start = np.searchsorted(i, np.arange(n + 1))
    labels, image = np.full(n, -1), np.zeros((n, 3), np.int64)
    count = 0
    for root in range(n):
        if labels[root] >= 0:
            continue
        labels[root], queue = count, [root]
        while queue:
            atom = queue.pop()
            for edge in range(start[atom], start[atom + 1]):
                other = j[edge]
                if labels[other] < 0:
                    labels[other], image[other] = count, image[atom] + shift[edge]
                    queue.append(other)
        count += 1
    polymer = bool((image[i] + shift != image[j]).any())
    numbers = x.numbers.numpy()
    formulas = [_formula(numbers[labels == k]) for k in range(count)]
    return Bonded(labels, formulas, polymer)


def rejected(structure: Structure) -> str | None:
    """Why NeuralCrystal would leave a crystal out, None if it would not (Experiments, conditions 1 to 4).

    "disordered"; "invalid": no atoms or cell, NaN, dummy species, atoms closer than 0.5 Angstrom; "polymer";
    "components": more than one kind of molecule.
    """
    if not structure.is_ordered:
        return "disordered"
    try:
        x = to_batch(structure, dtype=torch.float64, min_distance=MIN_DISTANCE)
    except CrystalMLError:
        return "invalid"
    found = bonded(x)
    if found.polymer:
        return "polymer"
    return "components" if len(set(found.formulas)) > 1 else None


def entries(limit: int | None = None) -> Iterator[tuple[str, Structure | None]]:
    """(refcode, structure) of the CSD's entries in their order, None where an entry has no coordinates.

    Raises UnsupportedError without the CSD Python API or a licence for it.
    """
    from pymatgen.io.cif import CifParser

    reader = _reader()
    for k in range(len(reader) if limit is None else min(limit, len(reader))):
        entry = reader[k]
        structure = None
        if entry.has_3d_structure:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    cif = CifParser.from_str(entry.to_string("cif"))
                    structure = cif.parse_structures(primitive=True)[0]
            except Exception:  # an entry may break the parser in any way; it is then no valid structure
                structure = None
        yield str(entry.identifier), structure


def pack_csd(limit: int | None = None, max_atoms: int | None = None) -> tuple[PackedDataset, Counter[str]]:
    """The entries that pass the four filters, packed for training, and how many went why.

    max_atoms: leave out larger primitive cells ("large").
    """
    kept: list[CrystalBatch] = []
    reasons: Counter[str] = Counter()
    for _, structure in entries(limit):
        reason = "invalid" if structure is None else rejected(structure)
        if reason is None and structure is not None:
            if max_atoms is not None and len(structure) > max_atoms:
                reason = "large"
            else:
                kept.append(to_batch(structure))
        reasons[reason or "kept"] += 1
    if not kept:
        raise UnsupportedError(f"no entry passed: {dict(reasons)}")
    x = CrystalBatch.cat(kept)
    data = PackedDataset.from_arrays(
        x.numbers.numpy(), x.frac.numpy(), x.lattice.numpy(), x.num_atoms.numpy()
    )
    return data, reasons


def _reader() -> Any:
    try:
        from ccdc.io import EntryReader
    except ImportError as error:
        raise UnsupportedError(
            "the Cambridge Structural Database is read through the CSD Python API (package ccdc), which "
            "comes with a CSD licence from https://www.ccdc.cam.ac.uk; without one, pretrain on CrysDB: "
            "crystalml pack"
        ) from error
    try:
        return EntryReader("CSD")
    except Exception as error:  # the API raises RuntimeError and others for a missing licence or database
        raise UnsupportedError(f"the CSD Python API finds no licensed CSD: {error}") from error


def _formula(numbers: NDArray[np.int64]) -> str:
    counts = Counter(numbers.tolist())
    return "".join(f"{symbol(z)}{n}" for z, n in sorted(counts.items()))
