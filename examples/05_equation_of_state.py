"""Equations of state (Birch-Murnaghan) of four solids with ASE, the energies of each in one batch.

Run: python examples/05_equation_of_state.py [model] [folder for the picture]
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from ase.build import bulk
from ase.eos import EquationOfState
from ase.units import GPa

from crystalml import DaoCalculator, Predictor, to_batch

predictor = Predictor(DaoCalculator(*sys.argv[1:2], device="cpu", dtype="float64").model)
folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None

# Structure, then a (A) and B (GPa): PBE (Paier et al., J. Chem. Phys. 124, 154709 (2006)), and experiment
# at room temperature. The model learned from PBE(+U), so PBE is what it can reach.
SOLIDS = {
    "Si": ("diamond", (5.47, 88), (5.43, 98)),
    "NaCl": ("rocksalt", (5.70, 23), (5.64, 25)),
    "MgO": ("rocksalt", (4.26, 149), (4.21, 160)),
    "Cu": ("fcc", (3.64, 136), (3.61, 137)),
}
STRAINS = np.linspace(-0.04, 0.04, 17)  # of the lattice constant

figure, axes = plt.subplots(1, 4, figsize=(11, 3), layout="constrained")
print("        a (A)    PBE    exp.    B (GPa)   PBE    exp.   rms of the fit (meV/atom)")
for (name, (kind, pbe, experiment)), plot in zip(SOLIDS.items(), axes, strict=True):
    cells = [bulk(name, kind, pbe[0] * (1 + strain)) for strain in STRAINS]
    out = predictor(to_batch(cells, dtype=torch.float64), forces=False)
    volumes, energies = np.array([cell.get_volume() for cell in cells]), out["energy"].numpy()
    middle = int(np.clip(np.argmin(energies), 5, len(cells) - 6))  # a fit needs both sides of the minimum
    near = slice(middle - 5, middle + 6)
    curve = EquationOfState(volumes[near], energies[near], eos="birchmurnaghan")
    volume, _, modulus = curve.fit(warn=False)
    x, y = curve.getplotdata()[4:6]
    missed = np.interp(volumes[near], x, y) - energies[near]
    a = (4 * volume) ** (1 / 3)  # four lattice points in the cubic cell of all of them
    rms = 1000 * np.sqrt(np.mean(missed**2)) / len(cells[0])
    print(
        f"{name:5s} {a:7.3f} {pbe[0]:7.2f} {experiment[0]:7.2f} {modulus / GPa:9.1f} {pbe[1]:6d} "
        f"{experiment[1]:6d} {rms:12.2f}"
    )
    plot.plot(volumes, energies / len(cells[0]), "o", ms=3)
    plot.plot(x, np.asarray(y) / len(cells[0]), lw=1)
    plot.axvline(pbe[0] ** 3 / 4, color="gray", ls=":", lw=1)
    plot.set(title=name, xlabel="volume (Å$^3$ / cell)")
axes[0].set_ylabel("formation energy (eV/atom)")
if folder:
    figure.savefig(folder / "equation_of_state.svg")
