"""Phonon bands and densities of states of silicon and rock salt with phonopy, forces in one batch.

Run: python examples/04_phonons.py [model] [folder for the picture]
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from phonopy import Phonopy
from phonopy.phonon.band_structure import get_band_qpoints_and_path_connections
from phonopy.structure.atoms import PhonopyAtoms

from crystalml import DaoCalculator, Predictor, relax, to_batch

calculator = DaoCalculator(*sys.argv[1:2], device="cpu", dtype="float64")
folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None

CRYSTALS = {"Si": bulk("Si", "diamond", 5.43, cubic=True), "NaCl": bulk("NaCl", "rocksalt", 5.64, cubic=True)}
# Neutrons, THz: Dolling (1963), Nilsson & Nelin (1972); Raunio, Almqvist & Stedman (1969). The splitting of
# LO from TO at Gamma in NaCl needs Born charges, which the model does not have.
EXPERIMENT = {"Si": {"TO": 15.53, "X TA": 4.49, "X TO": 13.90, "L TA": 3.43}, "NaCl": {"TO": 4.92}}
GAMMA, X, L = [0.0, 0.0, 0.0], [0.5, 0.0, 0.5], [0.5, 0.5, 0.5]
PATH = [[GAMMA, X, [0.625, 0.25, 0.625]], [[0.375, 0.375, 0.75], GAMMA, L]]
NAMES = [r"$\Gamma$", "X", "U|K", r"$\Gamma$", "L"]


def phonons(atoms: Atoms) -> Phonopy:
    """Force constants by finite displacements in a 2 x 2 x 2 supercell of the cubic cell (64 atoms)."""
    cell = PhonopyAtoms(atoms.get_chemical_symbols(), cell=atoms.cell[:], positions=atoms.positions)
    phonon = Phonopy(cell, 2 * np.eye(3), primitive_matrix="F")
    phonon.generate_displacements(distance=0.02)
    moved = phonon.supercells_with_displacements or []
    cells = [Atoms(c.symbols, c.positions, cell=c.cell, pbc=True) for c in moved]
    forces = Predictor(calculator.model)(to_batch(cells, dtype=torch.float64))["forces"]
    phonon.forces = forces.unflatten(0, (len(cells), -1)).numpy()
    phonon.produce_force_constants()
    phonon.symmetrize_force_constants()
    return phonon


figure, axes = plt.subplots(2, 2, figsize=(8, 6), width_ratios=[3, 1], sharey="row", layout="constrained")
for (name, atoms), (bands, density) in zip(CRYSTALS.items(), axes, strict=True):
    # Relaxed first: away from the model's own cell, stress shifts every frequency.
    atoms = relax(atoms, calculator, fmax=1e-4, fix_symmetry=True)[0]["final_structure"]
    phonon: Any = phonons(atoms)  # its results are typed as None until they are run
    phonon.run_qpoints([GAMMA, X, L])
    center, x_point, l_point = phonon.qpoints.frequencies
    values = {"TO": center[3], "X TA": x_point[0], "X TO": x_point[-1], "L TA": l_point[0]}
    print(f"{name}: a = {atoms.cell.lengths()[0]:.3f} A, frequencies in THz")
    for label, known in EXPERIMENT[name].items():
        print(f"  {label:4s} {values[label]:6.2f}  experiment {known:.2f} ({values[label] / known - 1:+.0%})")

    qpoints, connections = get_band_qpoints_and_path_connections(PATH, npoints=51)
    phonon.run_band_structure(qpoints, path_connections=connections)
    found = phonon.band_structure
    for x, y in zip(found.distances, found.frequencies, strict=True):
        bands.plot(x, y, color="tab:blue", lw=1)
    ticks = [0.0, *(x[-1] for x in found.distances)]
    bands.set(title=name, ylabel="frequency (THz)", xticks=ticks, xticklabels=NAMES, xlim=(0, ticks[-1]))
    bands.grid(axis="x")
    phonon.run_mesh([20, 20, 20], is_gamma_center=True)
    phonon.run_total_dos()
    lowest = np.min(phonon.mesh.frequencies)
    print(f"  lowest on a mesh of 20 x 20 x 20: {lowest:.2f} (imaginary ones are negative: unstable)")
    density.plot(phonon.total_dos.dos, phonon.total_dos.frequency_points, color="tab:blue", lw=1)
    density.set(xlabel="states / THz", xlim=(0, None))
if folder:
    figure.savefig(folder / "phonons.svg")
