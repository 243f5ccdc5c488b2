"""Learn from measurements of your own: critical temperatures, with an interval around each prediction.

python examples/13_superconductors.py [model]

model: what to start from, default "diffcsp". The data are critical temperatures (K) at ambient pressure:
elements and A15 compounds from C. Kittel, Introduction to Solid State Physics, 8th edition, chapter 10,
tables 1 and 2; MgB2 from Nagamatsu et al., Nature 410, 63 (2001). Lattice constants (Angstrom) are handbook
values. Prints predictions for crystals that were left out; seconds on a CPU; writes nothing.

The same with files, where data.csv has the columns file and log_tc. From hundreds of measurements the
encoder can learn, too (regression, diffusion), and a learned model can be the next one's start:

crystalml finetune data.csv --target log_tc --method gp --from diffcsp -o tc.safetensors
crystalml finetune more.csv --target log_tc --method diffusion --from diffcsp -o tc.safetensors
crystalml predict tc.safetensors *.cif --quantiles 0.05,0.5,0.95
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from pymatgen.core import Lattice, Structure

from crystalml import PropertyPredictor

ELEMENTS = """
Al fcc 4.05 0 1.140   Pb fcc 4.95 0 7.193    Th fcc 5.08 0 1.368   Ir fcc 3.84 0 0.14   La fcc 5.30 0 6.00
V bcc 3.03 0 5.38     Nb bcc 3.30 0 9.50     Ta bcc 3.30 0 4.483   Mo bcc 3.15 0 0.92   W bcc 3.16 0 0.012
Ti hcp 2.95 4.68 0.39 Zr hcp 3.23 5.15 0.546 Hf hcp 3.19 5.05 0.12 Zn hcp 2.66 4.95 0.875
Cd hcp 2.98 5.62 0.56 Ru hcp 2.71 4.28 0.51  Os hcp 2.74 4.32 0.655 Re hcp 2.76 4.46 1.4
Tc hcp 2.74 4.39 7.77 Tl hcp 3.46 5.52 2.39
"""
A15 = "Nb Sn 5.29 18.05  Nb Al 5.19 17.5  Nb Ge 5.14 23.2  V Si 4.72 17.1  V Ga 4.82 16.5"


SITES: dict[str, list[list[float]]] = {
    "fcc": [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]],
    "bcc": [[0, 0, 0], [0.5, 0.5, 0.5]],
    "hcp": [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]],
    "A15": [[0.25, 0, 0.5], [0.75, 0, 0.5], [0.5, 0.25, 0], [0.5, 0.75, 0], [0, 0.5, 0.25], [0, 0.5, 0.75]],
    "MgB2": [[0, 0, 0], [1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5]],
}


def table() -> tuple[list[Structure], np.ndarray]:
    crystals, tc = [Structure(Lattice.hexagonal(3.086, 3.524), ["Mg", "B", "B"], SITES["MgB2"])], ["39.0"]
    for symbol, kind, a, c, t in zip(*[iter(ELEMENTS.split())] * 5, strict=True):
        cell = Lattice.hexagonal(float(a), float(c)) if kind == "hcp" else Lattice.cubic(float(a))
        crystals.append(Structure(cell, [symbol] * len(SITES[kind]), SITES[kind]))
        tc.append(t)
    for metal, other, a, t in zip(*[iter(A15.split())] * 4, strict=True):
        sites = [metal] * 6 + [other] * 2
        crystals.append(Structure(Lattice.cubic(float(a)), sites, SITES["A15"] + SITES["bcc"]))
        tc.append(t)
    return crystals, np.log10(np.array(tc, float))


crystals, log_tc = table()
left_out = [i for i, s in enumerate(crystals) if s.reduced_formula in ("Ta", "Zn", "Nb3Al", "V3Si")]
seen = [i for i in range(len(crystals)) if i not in left_out]
# log10, because temperatures of 0.01 and of 20 K are equally interesting. Two dozen labels cannot teach an
# encoder that was pretrained on structures alone; a Gaussian process on its features makes most of them.
start = sys.argv[1] if len(sys.argv) > 1 else "diffcsp"
model = PropertyPredictor(start, "gp", name="log10 Tc", unit="log10 K")
model.fit([crystals[i] for i in seen], log_tc[seen])
with tempfile.TemporaryDirectory() as folder:
    file = Path(folder, "tc.safetensors")
    model.save(file)
    model = PropertyPredictor.load(file)  # PropertyPredictor(file) would start from what it has learned
_, levels = model.predict([crystals[i] for i in left_out], quantiles=(0.05, 0.5, 0.95))
print(f"learned from {len(seen)} crystals; their median is {10 ** np.median(log_tc[seen]):.2g} K")
for i, (low, middle, high) in zip(left_out, 10**levels, strict=True):
    name, measured = crystals[i].reduced_formula, 10 ** log_tc[i]
    print(f"{name:6s} Tc = {middle:6.2f} K (90 %: {low:.2g} to {high:.3g} K), measured {measured:.2f} K")
