"""Make the shipped atlas from CrysDB: `python -m crystalml.prototypes.corpus FOLDER_OF_CRYSDB`."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from crystalml.composition import parse_composition
from crystalml.datasets.arrays import Arrays
from crystalml.datasets.crysdb import crysdb
from crystalml.elements import atomic_number
from crystalml.progress import ProgressBar
from crystalml.prototypes.atlas import DEFAULT, PrototypeAtlas
from crystalml.prototypes.cluster import Clusters
from crystalml.prototypes.describe import describe_all

MAX_ATOMS = 52  # the largest cells of MPTS-52
HELD = ("CsV3Sb5", "Zr4Pd2O", "Zr4Rh2O")  # DAO's superconductors, for final tests only
MAX_BYTES = 4 * 2**20


def build_corpus(root: str | Path, cache: str | Path | None = None, progress: bool = True) -> PrototypeAtlas:
    """The atlas of all training crystals up to MAX_ATOMS atoms; validation and test crystals stay out.

    cache: a folder for the symmetrised crystals, with which a stopped run goes on.
    """
    data = without_held(crysdb(root, "train", max_atoms=MAX_ATOMS))
    sources = Counter(data.strings["source"].tolist())
    clusters, described = Clusters(), 0
    with ProgressBar(progress, "prototypes") as bar:
        bar.add(len(data))
        for part in describe_all(data, None if cache is None else Path(cache)):
            described += len(part)
            for _, crystal in part:
                clusters.add(crystal)
            bar.advance(4000)
    card = {
        "name": "crysdb",
        "crystals": described,
        "sources": dict(sorted(sources.items())),
        "split": "train (no validation, no test crystals)",
        "held_out": list(HELD),
        "max_atoms": MAX_ATOMS,
        "symprec": 0.1,
        "license": "CC BY 4.0",
        "attribution": "Aggregated from the Materials Project (Jain et al., APL Materials 1, 011002 (2013); "
        "CC BY 4.0) and from WBM, OQMD, AFLOW, Alexandria and JARVIS (CC BY 4.0 or open).",
    }
    return PrototypeAtlas.from_prototypes(clusters.prototypes(), card=card)


def without_held(data: Arrays) -> Arrays:
    """The crystals whose reduced formula is none of HELD."""
    held = [
        sorted((atomic_number(str(e)), round(n)) for e, n in parse_composition(f).get_el_amt_dict().items())
        for f in HELD
    ]
    keep, start = [], 0
    for row, count in enumerate(data.num_atoms.tolist()):
        amounts = Counter(data.numbers[start : start + count].tolist())
        start += count
        keep += [row] * all(not _same_formula(amounts, dict(pairs)) for pairs in held)
    return data[keep]


def _same_formula(amounts: dict[int, int], formula: dict[int, int]) -> bool:
    return set(amounts) == set(formula) and len({amounts[z] / formula[z] for z in formula}) == 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="folder of CrysDB")
    parser.add_argument("out", nargs="?", default=DEFAULT, help="file to write")
    parser.add_argument("--cache", default=None, help="folder for what a stopped run goes on with")
    chosen = parser.parse_args()
    atlas = build_corpus(chosen.root, chosen.cache)
    atlas.save(chosen.out)
    size = Path(chosen.out).stat().st_size
    print(f"{len(atlas)} prototypes of {atlas.card['crystals']} crystals, {size} bytes")
    if size > MAX_BYTES:
        raise SystemExit(f"that is more than {MAX_BYTES} bytes: raise the tolerances of Closeness")


if __name__ == "__main__":
    main()
