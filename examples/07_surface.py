"""Surface energies and relaxations of slabs: gamma = (E_slab - N e_bulk) / 2A, by thickness.

Run: python examples/07_surface.py [model] [folder for the picture]
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
from ase import Atoms
from ase.build import bulk, fcc111, surface
from ase.units import J, m

from crystalml import DaoCalculator, relax

calculator = DaoCalculator(*sys.argv[1:2], device="cpu", dtype="float64")
folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None

# J/m^2. NaCl: PBE and LDA, Li, Michaelides & Scheffler, Phys. Rev. B 76, 075401 (2007). MgO: cleavage, as
# quoted by Alfe & Gillan, J. Phys.: Condens. Matter 18, L435 (2006). Cu: PBE, Tran et al., Sci. Data 3,
# 160080 (2016). No slab was in training.
KNOWN = {"NaCl(001)": "0.14-0.24", "MgO(001)": "1.04-1.20", "Cu(111)": "1.34"}
LAYERS = (2, 4, 6)


def slab(name: str, crystal: Atoms, layers: int) -> Atoms:
    """Periodic in two directions only: the vacuum needs no thickness."""
    a = (crystal.get_volume() * 4 / (len(crystal) / len(set(crystal.symbols)))) ** (1 / 3)
    if name == "Cu(111)":
        return fcc111("Cu", (1, 1, layers), a=a)
    cubic = bulk(name.removesuffix("(001)"), "rocksalt", a, cubic=True)
    return surface(cubic, (0, 0, 1), layers // 2, periodic=False)


figure, plot = plt.subplots(figsize=(5, 3.5), layout="constrained")
for name, known in KNOWN.items():
    kind = "fcc" if name.startswith("Cu") else "rocksalt"
    start = bulk(name.split("(")[0], kind, 3.6 if kind == "fcc" else 5.0)
    found = relax(start, calculator, fmax=0.001, fix_symmetry=True)[0]
    crystal, per_atom = found["final_structure"], found["energy"] / len(start)
    energies = []
    for layers in LAYERS:
        film = slab(name, crystal, layers)
        film.calc = calculator
        ideal = film.get_potential_energy()
        area = film.cell.areas()[2]
        final = relax(film, calculator, fmax=0.01)[0]["energy"]  # all atoms, in the crystal's own plane
        gammas = [(energy - len(film) * per_atom) / (2 * area) / (J / m**2) for energy in (ideal, final)]
        energies.append(gammas[1])
        print(
            f"{name:10s} {layers} layers: {gammas[0]:.3f} cut, {gammas[1]:.3f} relaxed J/m^2 (known {known})"
        )
    plot.plot(LAYERS, energies, "o-", label=f"{name} (known {known})")
plot.set(xlabel="layers", ylabel="surface energy (J/m$^2$)", ylim=(0, None), xticks=LAYERS)
plot.legend()
if folder:
    figure.savefig(folder / "surface.svg")
