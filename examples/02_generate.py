"""Sample crystal structures of a composition, reproducibly, and write them with their provenance.

Run: python examples/02_generate.py [model] [energy model]    (default dao-g and dao-p-diffusion)
"""

import sys
import tempfile
from pathlib import Path

from crystalml import StructureGenerator
from crystalml.write import write_structures

model = sys.argv[1] if len(sys.argv) > 1 else "dao-g"
energy_model = sys.argv[2] if len(sys.argv) > 2 else "dao-p-diffusion"
generator = StructureGenerator(model, energy_model, device="cpu")
STEPS = 50  # quick; the recipe's own number (steps=None) is 1000

# 1. One composition. formula_units="auto" guesses Z from the training crystals; a number is taken as said.
for structure in generator.sample("NaCl", n=3, formula_units=1, seed=0, steps=STEPS):
    print(structure.formula, structure.lattice.abc, structure.get_space_group_info(symprec=0.1))

# 2. Several compositions in one batch, several Z; a list of lists comes back.
groups = generator.sample(["MgO", {"Ti": 1, "O": 2}], n=2, formula_units=range(1, 3), seed=0, steps=STEPS)
print([[structure.formula for structure in group] for group in groups])

# 3. Sample i is a function of (seed, composition, i): alone or in a crowd, it is the same crystal.
crowd = generator.sample("MgO", n=4, formula_units=1, seed=7, steps=STEPS)
alone = generator.sample("MgO", n=1, formula_units=1, seed=7, steps=STEPS)
if crowd and alone:
    print("same cell:", crowd[0].lattice.abc, alone[0].lattice.abc)

# 4. Guidance by the energy model pulls towards low energy while sampling (DAO, Algorithm 1).
guided = generator.sample("NaCl", n=1, formula_units=1, seed=0, steps=STEPS, guidance=1.0)
print("guided:", [structure.properties for structure in guided])

# 5. The way from noise to crystal.
structures, paths = generator.sample("NaCl", n=1, formula_units=1, steps=STEPS, return_trajectory=True)
print("frames:", [len(path) for path in paths], "draws rejected:", dict(generator.report.rejected))

# 6. Files: extxyz, symmetrised CIFs in a zip, JSON lines. Provenance goes along.
with tempfile.TemporaryDirectory() as folder:
    for name in ("samples.extxyz", "samples.cif.zip", "samples.jsonl"):
        notes = write_structures(structures, Path(folder, name))
        print(name, Path(folder, name).stat().st_size, "bytes", notes)
