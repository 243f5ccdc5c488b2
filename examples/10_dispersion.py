"""Dispersion on top: the potential plus D3(BJ) in ASE's SumCalculator, on the layers of graphite.

Run: python examples/10_dispersion.py [model] [folder for the picture]   (needs "crystalml-dao[properties]")
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from ase import Atoms
from ase.calculators.mixing import SumCalculator
from ase.filters import FrechetCellFilter
from ase.lattice.hexagonal import Graphite
from ase.optimize import BFGS
from torch_dftd.torch_dftd3_calculator import TorchDFTD3Calculator

from crystalml import DaoCalculator

folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None

# The labels of the potential are PBE(+U) without dispersion, so D3 takes PBE's parameters (Grimme, Ehrlich &
# Goerigk, J. Comput. Chem. 32, 1456 (2011)); never add it to a potential trained with dispersion.
potential = DaoCalculator(*sys.argv[1:2], device="cpu", dtype="float64")
dispersion = TorchDFTD3Calculator(
    xc="pbe", damping="bj", cutoff=20.0, cnthr=20.0, device="cpu", dtype=torch.float64
)
both = SumCalculator([potential, dispersion])
COLORS = {"potential": "tab:gray", "potential + D3(BJ)": "tab:blue"}


def graphite(spacing: float) -> Atoms:
    return Graphite("C", latticeconstant={"a": 2.46, "c": 2 * spacing})


spacings = np.linspace(3.0, 6.0, 16)
figure, plot = plt.subplots(figsize=(5, 3.5), layout="constrained")
print("graphite: layer spacing (A), binding (meV/atom); experiment 3.35 A, 31 to 52 meV/atom")
for (label, color), calculator in zip(COLORS.items(), (potential, both), strict=True):
    energies = []
    for spacing in spacings:
        atoms = graphite(spacing)
        atoms.calc = calculator
        energies.append(1000 * atoms.get_potential_energy() / len(atoms))
    best = int(np.argmin(energies))
    print(f"  {label:18s} {spacings[best]:.2f} A, {energies[-1] - energies[best]:.0f} meV/atom up to 6 A")
    plot.plot(spacings, np.array(energies) - energies[-1], color=color, label=label)
plot.axvline(3.35, color="black", ls=":", lw=1)
plot.set(xlabel="layer spacing (Å)", ylabel="energy (meV/atom)")
plot.legend()

# Forces and stress add up, too: any optimizer takes the sum.
atoms = graphite(3.5)
atoms.calc = both
everything = FrechetCellFilter(atoms)
BFGS(everything, logfile=None).run(fmax=0.02, steps=30)  # type: ignore[arg-type]
a, _, c = atoms.cell.lengths()
print(f"  relaxed with D3: a = {a:.3f} A, c/2 = {c / 2:.3f} A (experiment 2.461, 3.353)")
if folder:
    figure.savefig(folder / "dispersion.svg")
