"""Molecular dynamics of rock salt with ASE: what NVE conserves at three time steps, and NVT at 300 K.

Run: python examples/08_dynamics.py [model] [folder for the picture] [picoseconds, default 0.1]
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.md.bussi import Bussi
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet

from crystalml import DaoCalculator, relax

calculator = DaoCalculator(*sys.argv[1:2], device="cpu", dtype="float64")
folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None
DURATION = 1000 * units.fs * (float(sys.argv[3]) if len(sys.argv) > 3 else 0.1)


def crystal(temperature: float) -> Atoms:
    """64 atoms at the model's own lattice constant, with velocities of a temperature and no drift."""
    salt = bulk("NaCl", "rocksalt", 5.64, cubic=True)
    atoms = relax(salt, calculator, fmax=1e-3, fix_symmetry=True)[0]["final_structure"] * (2, 2, 2)
    atoms.calc = calculator
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=np.random.default_rng(0))
    Stationary(atoms)
    return atoms


figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")

# 1. NVE: velocity Verlet conserves energy up to (time step)^2, if forces are the gradient of a smooth energy.
start = crystal(600)  # half of it becomes potential energy
for step in (4.0, 2.0, 1.0):
    atoms = start.copy()
    atoms.calc = calculator
    run = VelocityVerlet(atoms, timestep=step * units.fs)
    energies = np.array([atoms.get_total_energy() for _ in run.irun(round(DURATION / (step * units.fs)))])
    times = step * np.arange(len(energies)) / 1000
    error = 1000 * (energies - energies[0]) / len(atoms)
    drift = np.polyfit(times, error, 1)[0]
    print(f"NVE, {step:.0f} fs: fluctuation {error.std():.4f} meV/atom, drift {drift:+.4f} meV/atom/ps")
    left.plot(times, error, lw=1, label=f"{step:.0f} fs")
left.set(xlabel="time (ps)", ylabel="total energy (meV/atom)", title="NVE")
left.legend()

# 2. NVT: stochastic velocity rescaling (Bussi, Donadio & Parrinello, J. Chem. Phys. 126, 014101 (2007)).
atoms = crystal(600)
thermostat = Bussi(atoms, 2 * units.fs, temperature_K=300, taut=50 * units.fs, rng=np.random.default_rng(1))
temperatures = np.array([atoms.get_temperature() for _ in thermostat.irun(round(DURATION / (2 * units.fs)))])
half = temperatures[len(temperatures) // 2 :]
spread = 300 * (2 / (3 * len(atoms))) ** 0.5
print(f"NVT, 300 K: mean {half.mean():.0f} K, fluctuation {half.std():.0f} K (canonical {spread:.0f} K)")
right.plot(2 * np.arange(len(temperatures)) / 1000, temperatures, lw=1, color="tab:red")
right.axhline(300, color="gray", ls=":")
right.set(xlabel="time (ps)", ylabel="temperature (K)", title="NVT")
if folder:
    figure.savefig(folder / "dynamics.svg")
