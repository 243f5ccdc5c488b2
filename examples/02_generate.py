"""Crystal structures for a composition, reproducibly, and files with their provenance.

Run: python examples/02_generate.py [model] [energy model]    (default dao-g and dao-p-diffusion)
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from crystalml import StructureGenerator
from crystalml.samples import plot_path

model = sys.argv[1] if len(sys.argv) > 1 else "dao-g"
energy_model = sys.argv[2] if len(sys.argv) > 2 else "dao-p-diffusion"
generator = StructureGenerator(model, energy_model, device="cpu", solver="heun")
STEPS = 10  # network evaluations: two a step

# 1. Known structure types first, relaxed and ranked; diffusion draws what they leave open.
for structure in generator.sample("NaCl", n=3, max_atoms=8):
    print(structure.formula, structure.get_space_group_info(symprec=0.1), structure.properties["strategy"])

# 2. A chemical system shares the structures among its likeliest formulas; a space group is kept.
table = generator.sample("Li-O", n=4, max_atoms=12).to_dataframe()
print(table[["formula", "space_group_found", "strategy"]])
print([s.get_space_group_info() for s in generator.sample("TiO2", n=2, space_group=136, max_atoms=12)])

# 3. Diffusion alone: several compositions in one batch, several Z; a list of lists comes back.
noise: dict[str, Any] = {"strategy": "diffusion", "steps": STEPS, "seed": 0}
groups = generator.sample(["MgO", {"Ti": 1, "O": 2}], n=2, formula_units=range(1, 3), **noise)
print([[structure.formula for structure in group] for group in groups])

# 4. Sample i is a function of (seed, composition, i): alone or in a crowd, it is the same crystal.
crowd = generator.sample("MgO", n=4, formula_units=1, distinct=False, **noise)
alone = generator.sample("MgO", n=1, formula_units=1, distinct=False, **noise)
if crowd and alone:
    print("same cell:", crowd[0].lattice.abc, alone[0].lattice.abc)

# 5. Guidance by the energy model pulls towards low energy while sampling (DAO, Algorithm 1).
guided = generator.sample("NaCl", n=1, formula_units=1, guidance=1.0, **noise)
print("guided:", [structure.properties for structure in guided])

# 6. The way from noise to crystal, and files: extxyz, symmetrised CIFs in a zip, JSON lines.
structures, paths = generator.sample("NaCl", n=1, formula_units=1, return_trajectory=True, **noise)
print("frames:", [len(path) for path in paths], "draws rejected:", dict(generator.report.rejected))
with tempfile.TemporaryDirectory() as folder:
    for name in ("samples.extxyz", "samples.cif.zip", "samples.jsonl"):
        print(name, structures.write(Path(folder, name)), Path(folder, name).stat().st_size, "bytes")
    if paths:
        print(plot_path(paths[0], Path(folder, "denoising.png")))
