"""Elastic constants of three cubic crystals by matcalc (pip install "crystalml-dao[properties]").

Run: python examples/06_elastic.py [model]
"""

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # matcalc lists models of a hub on import; none is needed here

from ase.build import bulk
from matcalc import ElasticityCalc

from crystalml import DaoCalculator

calculator = DaoCalculator(*sys.argv[1:2], device="cpu", dtype="float64")

# C11, C12, C44 in GPa at room temperature: McSkimin & Andreatch (1964); Bartels & Schuele (1965);
# Sinogeikin & Bass (2000).
EXPERIMENT = {
    "Si": (bulk("Si", "diamond", 5.43, cubic=True), (166, 64, 80)),
    "NaCl": (bulk("NaCl", "rocksalt", 5.64, cubic=True), (49, 13, 13)),
    "MgO": (bulk("MgO", "rocksalt", 4.21, cubic=True), (297, 95, 156)),
}

# Inner coordinates are relaxed in each strained cell: in silicon C44 depends on it.
elastic = ElasticityCalc(
    calculator,
    fmax=1e-3,
    relax_deformed_structures=True,
    norm_strains=(-0.01, 0.01),
    shear_strains=(-0.02, 0.02),
    relax_calc_kwargs={"max_steps": 200},
    units_GPa=True,
)
print("GPa    C11  exp.   C12  exp.   C44  exp.   bulk modulus  mechanically stable")
for name, (atoms, known) in EXPERIMENT.items():
    result = elastic.calc(atoms)
    c = result["elastic_tensor"].voigt
    c11, c12, c44 = c[:3, :3].trace() / 3, (c[0, 1] + c[0, 2] + c[1, 2]) / 3, c[3:, 3:].trace() / 3
    stable = c11 > abs(c12) and c11 + 2 * c12 > 0 and c44 > 0  # Born's criteria for cubic crystals
    print(
        f"{name:4s} {c11:5.0f} {known[0]:5d} {c12:5.0f} {known[1]:5d} {c44:5.0f} {known[2]:5d} "
        f"{result['bulk_modulus_vrh']:10.0f}      {'yes' if stable else 'no'}"
    )
