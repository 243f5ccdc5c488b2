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
from crystalml.relax import relax, relax_files

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

# 3. crystalml: a dictionary with everything worth knowing about the run.
result = relax(structure, calculator, fmax=0.05, steps=20)[0]
print(
    f"relax: converged {result['converged']} in {result['n_steps']} steps, fmax {result['fmax']:.3f} eV/A, "
    f"{result['spacegroup_before']} -> {result['spacegroup_after']}"
)

# 4. Files: what cannot be read is reported, the others go on.
with tempfile.TemporaryDirectory() as folder:
    structure.to(str(Path(folder, "good.cif")))
    Path(folder, "bad.cif").write_text("this is no crystal")
    report = relax_files(folder, calculator, fmax=0.05, steps=5)
    print("relaxed:", [Path(name).name for name, _ in report.results])
    print("failed:", [Path(name).name for name, _ in report.failures])
