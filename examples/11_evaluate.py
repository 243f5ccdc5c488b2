"""Judge a generator: validity, distributions, novelty, stability, and a report to look at.

Run: python examples/11_evaluate.py [energy model]    (a shipped name, a path or a hf:// address)
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from pymatgen.core import Lattice, Structure

from crystalml import evaluate, substitute
from crystalml.metrics.distribution import frechet
from crystalml.metrics.stability import HullTable
from crystalml.weights import DEFAULT_POTENTIAL

energy_model = sys.argv[1] if len(sys.argv) > 1 else DEFAULT_POTENTIAL


def rocksalt(cation: str, anion: str, a: float) -> Structure:
    cell = Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])
    return cell.get_primitive_structure()


# 1. Samples of any generator, here substitution into known structure types, a copy, and one that failed.
formulas = ("NaCl", "MgO", "LiF", "KBr", "SrTiO3", "CsV3Sb5")
samples: list[Structure | None] = [answer for formula in formulas for answer in substitute(formula, 2)]
samples += [rocksalt("Na", "Cl", 5.65), None]

# 2. What they should be like. Files, folders, globs and Parquet tables do as well.
reference = [rocksalt(*salt) for salt in (("Na", "Cl", 5.64), ("Mg", "O", 4.21), ("Li", "F", 4.03))]

# 3. Everything that can be measured, or the groups named. Rates are over all samples, failed ones included.
groups = ("validity", "distribution", "match", "uniqueness", "novelty", "stability")
verdict = evaluate(
    samples, reference, metrics=groups, energy_model=energy_model, device="cpu", progress=False
)
verdict.show()
rate = verdict["sun"]
low, high = rate.interval or (np.nan, np.nan)
print(f"{rate.name}: {100 * rate.value:.0f} % (95 %: {100 * low:.0f} to {100 * high:.0f} %); {rate.note}")

# 4. One row a sample, for pandas.
table = verdict.to_dataframe()
print(table[["formula", "spacegroup", "energy_above_hull", "known_as", "rms"]].to_string())

# 5. The metrics are functions of their own. A hull of your own is a table of formation energies, eV/atom.
hull = HullTable.from_entries(["NaCl", "Na2Cl"], [-2.1, -0.5])
print("above a hull of one's own:", hull.above([s.composition for s in reference[:1]], [-1.9]).round(3))
shifted = np.random.default_rng(0).normal(size=(500, 3))
print("Frechet distance of features moved by 1:", round(frechet(shifted, shifted + np.array([1, 0, 0])), 6))

# 6. metrics.json, samples.csv and one page that any browser opens without a network.
with tempfile.TemporaryDirectory() as folder:
    print([path.name for path in verdict.save(Path(folder))])
