"""Relax crystals with DaoCalculator: through ASE, through pymatgen, and from files.

Run: python examples/01_relax.py [model]    (a shipped name, a path or a hf:// address; default dao-p)
"""

import sys
import tempfile
from pathlib import Path

from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from pymatgen.core import Lattice, Structure

from crystalml import DaoCalculator
from crystalml.relax import relax
from crystalml.relax_files import relax_folder

calculator = DaoCalculator(sys.argv[1] if len(sys.argv) > 1 else "dao-p", device="cpu")

# 1. ASE: any optimizer, any filter. Energies are eV a cell, stress is +dE/d(strain)/V in eV/A^3.
atoms = bulk("NaCl", "rocksalt", a=5.7)
atoms.rattle(0.05, seed=0)
atoms.calc = calculator
before = atoms.get_potential_energy()
everything = FrechetCellFilter(atoms)  # atoms and cell
BFGS(everything, logfile=None).run(fmax=0.05, steps=20)  # type: ignore[arg-type]  # ASE's hint forgets filters
print(f"ASE: {before:.3f} -> {atoms.get_potential_energy():.3f} eV, stress {atoms.get_stress().round(4)}")

# 2. pymatgen: its own door takes the calculator as it is.
structure = Structure.from_spacegroup(
    "Fm-3m", Lattice.cubic(5.7), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
).get_primitive_structure()
relaxed = structure.relax(calculator=calculator, steps=20, fmax=0.05)
assert isinstance(relaxed, Structure)
print(f"pymatgen: a = {relaxed.lattice.a:.3f} A, {calculator.results['energy']:.3f} eV")

# 3. crystalml: many in one batch, each with its symmetry kept, and everything worth knowing about the run.
strained = [structure.copy().scale_lattice(structure.volume * factor) for factor in (0.9, 1.0, 1.1)]
for result in relax(strained, calculator, fmax=0.05, fix_symmetry=True, progress=False):
    print(
        f"relax: converged {result['converged']} in {result['n_steps']} steps, fmax {result['fmax']:.3f}, "
        f"{result['spacegroup_before']} -> {result['spacegroup_after']}"
    )

# 4. Folders: what cannot be read is reported, the others go on; started again, it does what is missing.
with tempfile.TemporaryDirectory() as folder:
    structure.to(str(Path(folder, "good.cif")))
    Path(folder, "bad.cif").write_text("this is no crystal")
    for _ in range(2):
        report = relax_folder(folder, Path(folder, "out"), calculator, progress=False)
        print("relaxed:", [row["structure"] for row in report.rows if not row["error"]])
        print("failed:", [Path(name).name for name, _ in report.failures], "from before:", report.skipped)
