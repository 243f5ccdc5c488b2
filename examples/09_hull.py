"""Energies above the hull in K-Mg-F with pymatgen: all by the model, and the model's among DFT's.

Run: python examples/09_hull.py [model] [folder for the picture]
"""

import sys
from pathlib import Path
from typing import Any

import torch
from pymatgen.analysis.phase_diagram import PDPlotter, PhaseDiagram
from pymatgen.core import Lattice, Structure

from crystalml import Predictor, load_model, relax, to_batch
from crystalml.entries import computed_entry, element_entries

model = sys.argv[1] if len(sys.argv) > 1 else "dao-p"
folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None

# Formation energies (eV/atom, MP2020 scheme) of the Materials Project, CC BY 4.0.
DFT = {"KF": -2.936, "MgF2": -3.829, "KMgF3": -3.548, "K2MgF4": -3.379}
CRYSTALS = {
    "KF": Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.35), ["K", "F"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "MgF2": Structure.from_spacegroup(
        "P4_2/mnm", Lattice.tetragonal(4.62, 3.05), ["Mg", "F"], [[0, 0, 0], [0.303, 0.303, 0]]
    ),
    "KMgF3": Structure.from_spacegroup(
        "Pm-3m", Lattice.cubic(3.99), ["K", "Mg", "F"], [[0.5, 0.5, 0.5], [0, 0, 0], [0.5, 0, 0]]
    ),
    "K2MgF4": Structure.from_spacegroup(
        "I4/mmm",
        Lattice.tetragonal(3.98, 13.18),
        ["K", "Mg", "F", "F"],
        [[0, 0, 0.352], [0, 0, 0], [0, 0.5, 0], [0, 0, 0.153]],
    ),
    "KMg2F5 (guess)": Structure.from_spacegroup(
        "P4/mmm",
        Lattice.tetragonal(3.98, 6.6),
        ["K", "Mg", "F", "F"],
        [[0.5, 0.5, 0.5], [0, 0, 0.3], [0, 0.5, 0.3], [0, 0, 0]],
    ),
}

relaxed = [found["final_structure"] for found in relax(list(CRYSTALS.values()), model, progress=False)]
out = Predictor(load_model(model))(to_batch(relaxed), forces=False)

# 1. A diagram of the model alone: formation energies, with the elements at zero by definition.
entries = {
    name: computed_entry(structure, energy)
    for name, structure, energy in zip(CRYSTALS, relaxed, out["energy"].tolist(), strict=True)
}
elements = element_entries(["K", "Mg", "F"])
own = PhaseDiagram([*entries.values(), *elements])

# 2. The model's energy of one phase among DFT's of the others: what a screening does. Entries of
# `MPRester().get_entries_in_chemsys` are total energies: give their PhaseDiagram to computed_entry as
# `references` and put the result beside them.
known = [computed_entry(CRYSTALS[name], energy * len(CRYSTALS[name])) for name, energy in DFT.items()]
mixed = PhaseDiagram([*known, *elements])

print("eV/atom           formation   DFT    error bar   above the model's hull   above DFT's hull")
bars = out.get("energy_uncertainty", torch.full((len(entries),), torch.nan)).tolist()
for (name, entry), bar in zip(entries.items(), bars, strict=True):
    print(
        f"{name:16s} {entry.energy_per_atom:9.3f} {DFT.get(name, torch.nan):8.3f} "
        f"{bar / len(entry.structure):8.3f} "
        f"{own.get_e_above_hull(entry) or 0:15.3f} "
        f"{mixed.get_decomp_and_e_above_hull(entry, allow_negative=True)[1] or 0:22.3f}"
    )
if folder:
    axes: Any = PDPlotter(own, show_unstable=0.2, backend="matplotlib").get_plot()
    axes.figure.savefig(folder / "hull.svg", bbox_inches="tight")
