"""Train a small model on your own crystals, save it, and use it like a shipped one.

Run: python examples/03_train.py    (half a minute; real training takes hours and `crystalml train`)
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from pymatgen.core import Lattice, Structure

from crystalml import DaoCalculator, StructureGenerator, load_model
from crystalml.convert import to_batch
from crystalml.datasets.packed import PackedDataset
from crystalml.train import TrainConfig, train
from crystalml.training.fit import FitConfig

# 1. Crystals with a label: rock salts, whose made-up energy is lowest at the lattice constant they have.
rng = np.random.default_rng(0)
SALTS = {("Na", "Cl"): 5.64, ("Mg", "O"): 4.21, ("Li", "F"): 4.03, ("K", "Br"): 6.60}
structures, energies = [], []
for _ in range(64):
    for (cation, anion), a in SALTS.items():
        strain = 0.05 * rng.standard_normal()
        edge = a * (1 + strain) / 2**0.5  # of the primitive cell, which is Niggli-reduced as it stands
        cell = Lattice.from_parameters(edge, edge, edge, 60, 60, 60)
        structures.append(Structure(cell, [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]]))
        energies.append(-3.0 + 50 * strain**2)

# 2. Packed: one small tensor file. `crystalml pack` makes them from a CrysDB folder.
x = to_batch(structures)
data = PackedDataset(
    numbers=x.numbers.to(torch.int8),
    frac=x.frac,
    lattice=x.lattice,
    num_atoms=x.num_atoms.to(torch.int16),
    labels={"energy": torch.tensor(energies, dtype=torch.float32)},
)

with tempfile.TemporaryDirectory() as folder:
    # 3. Training is an iterator: look at the losses, stop when you like; the same call would go on.
    out = Path(folder, "run")
    config = TrainConfig("dao-p-diffusion", out, "tiny", fit=FitConfig(steps=150, lr=3e-3), validations=4)
    for log in train(config, data):
        print(log.run.progress.step, {name: round(value, 3) for name, value in log.losses.items()})

    # 4. The result is a safetensors file with its architecture inside; it loads like a shipped model.
    model = load_model(out / "model.safetensors")
    atoms = structures[0].to_ase_atoms()
    atoms.calc = DaoCalculator(model, device="cpu")
    print(f"{atoms.get_potential_energy() / len(atoms):.2f} eV/atom (label {energies[0]:.2f})")

    generator = StructureGenerator(model, None, device="cpu")
    samples = generator.sample("NaCl", n=2, formula_units=1, strategy="diffusion", steps=100, progress=False)
    print([sample.formula for sample in samples], dict(generator.report.rejected))
