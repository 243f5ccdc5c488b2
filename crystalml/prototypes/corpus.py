"""Make the shipped atlas from CrysDB: `python -m crystalml.prototypes.corpus FOLDER_OF_CRYSDB`."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

# What a crystal counts for, by energy above hull (eV/atom) and, where that is not known, by source: fitted to
# the ranks of the right prototypes of 500 MP-20 validation crystals, which are stable as a rule.
STABLE, NEARLY, UNSTABLE = (0.02, 4.0), (0.1, 1.8), 0.4
UNKNOWN = {"mp": 0.8, "wbm": 1.0}  # others: as unstable ones


def build_corpus(root: str | Path, cache: str | Path | None = None, progress: bool = True) -> PrototypeAtlas:
    """The atlas of all training crystals up to MAX_ATOMS atoms; validation and test crystals stay out.

    cache: a folder for the symmetrised crystals, with which a stopped run goes on.
    """
    data = without_held(crysdb(root, "train", max_atoms=MAX_ATOMS))
    clusters, described = Clusters(), 0
    weight = dict(zip(data.ids, evidence(data).tolist(), strict=True))
    with ProgressBar(progress, "prototypes") as bar:
        bar.add(len(data))
        for part in describe_all(data, None if cache is None else Path(cache)):
            described += len(part)
            for name, crystal in part:
                clusters.add(crystal, weight[name])
            bar.advance(4000)
    return PrototypeAtlas.from_prototypes(clusters.prototypes(), card=card_of(data, described))


def card_of(data: Arrays, described: int) -> dict[str, Any]:
    """What the atlas says of itself. described: the crystals among data that spglib could describe."""
    return {
        "name": "crysdb",
        "crystals": described,
        "sources": dict(sorted(Counter(data.strings["source"].tolist()).items())),
        "split": "train (no validation, no test crystals)",
        "held_out": list(HELD),
        "max_atoms": MAX_ATOMS,
        "symprec": 0.1,
        "weights": {"stable": STABLE, "nearly stable": NEARLY, "unstable": UNSTABLE, "unknown": UNKNOWN},
        "license": "CC BY 4.0",
        "attribution": "Aggregated from the Materials Project (Jain et al., APL Materials 1, 011002 (2013); "
        "CC BY 4.0) and from WBM, OQMD, AFLOW, Alexandria and JARVIS (CC BY 4.0 or open).",
    }


def evidence(data: Arrays) -> NDArray[Any]:
    """(b,) what each crystal counts for."""
    above = data.labels["energy_above_hull"]
    unknown = np.array([UNKNOWN.get(str(name), UNSTABLE) for name in data.strings["source"]])
    graded = np.where(above <= STABLE[0], STABLE[1], np.where(above <= NEARLY[0], NEARLY[1], UNSTABLE))
    return np.where(np.isfinite(above), graded, unknown)


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
