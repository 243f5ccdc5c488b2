"""`crystalml quickstart`: relax a rattled crystal, sample CsV3Sb5, compare with experiment: a minute."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from crystalml.calculators.ase import DaoCalculator
from crystalml.convert import to_batch
from crystalml.generate import StructureGenerator
from crystalml.metrics.match import MatchTolerances
from crystalml.predict import Predictor
from crystalml.relax import Relaxation, relax, spacegroup
from crystalml.write import to_cif, write_structures

if TYPE_CHECKING:
    from crystalml.models.model import CrystalModel

FORMULA = "CsV3Sb5"
SOURCE = "Ortiz et al., Phys. Rev. Materials 3, 094407 (2019)"


def kagome_reference() -> Structure:
    """CsV3Sb5 as measured at room temperature: P6/mmm, a = 5.4949 A, c = 9.3085 A (Ortiz et al. 2019).

    Cs 1a, V 3g (the kagome net), Sb1 1b (centres of its hexagons), Sb2 4h at (1/3, 2/3, 0.7422).
    """
    z = 0.7422
    vanadium = [[0.5, 0, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0.5]]
    antimony = [[0, 0, 0.5], *([x, 1 - x, h] for h in (z, 1 - z) for x in (1 / 3, 2 / 3))]
    species = ["Cs"] + ["V"] * 3 + ["Sb"] * 5
    return Structure(Lattice.hexagonal(5.4949, 9.3085), species, [[0, 0, 0], *vanadium, *antimony])


@dataclass
class Row:
    """One line of the table. rms: displacement over (V/N)^(1/3) by StructureMatcher; None without a match."""

    name: str
    structure: Structure
    energy_per_atom: float
    rms: float | None

    @property
    def cells(self) -> list[str]:
        match = "no" if self.rms is None else f"yes, rms {self.rms:.3f}"
        energy = f"{self.energy_per_atom:.3f}"
        return [self.name, self.structure.reduced_formula, spacegroup(self.structure), energy, match]


@dataclass
class QuickstartResult:
    """What was computed, the files written, and the seconds it took."""

    folder: Path
    relaxation: Relaxation[Structure]
    rows: list[Row]
    seconds: float
    files: list[Path] = field(default_factory=list)


def quickstart(
    folder: str | os.PathLike[str] = "crystalml-quickstart",
    n: int = 8,
    steps: int | None = 100,
    seed: int = 0,
    device: str | None = None,
    *,
    energy_model: str | os.PathLike[str] | CrystalModel = "dao-p",
    generator: str | os.PathLike[str] | CrystalModel = "dao-g",
    relax_steps: int = 60,
) -> QuickstartResult:
    """Run the tour and write its CIFs and one picture into `folder`; see the module. Prints as it goes."""
    from rich.console import Console

    console, start, out = Console(), time.perf_counter(), Path(folder)
    calculator = DaoCalculator(energy_model, device=device)
    makers = StructureGenerator(generator, None, device=device)

    console.print(f"[bold]1.[/] Relaxing a rattled {FORMULA} with L-BFGS")
    reference = kagome_reference()
    rattled = rattle(reference, seed)
    run = relax(rattled, calculator, fmax=0.05, max_steps=relax_steps, trajectory=True)[0]
    first, last = (run["trajectory"]["energies"][i] / len(reference) for i in (0, -1))
    largest = run["trajectory"]["fmax"][0]
    console.print(
        f"   {run['n_steps']} steps, energy {first:.3f} -> {last:.3f} eV/atom, largest force "
        f"{largest:.2f} -> {run['fmax']:.2f} eV/A{'' if run['converged'] else ' (stopped at the step limit)'}"
    )
    console.print(f"[bold]2.[/] Sampling {n} crystals of {FORMULA} with StructureGenerator (seed {seed})")
    samples = makers.sample(FORMULA, n, formula_units=1, strategy="diffusion", seed=seed, steps=steps)
    console.print(
        f"[bold]3.[/] Putting {FORMULA} on known structure types (no network, strategy='prototype')"
    )
    known = makers.sample(FORMULA, 3, formula_units=1, strategy="prototype")
    named = {"experiment": reference, "rattled": rattled, "relaxed": run["final_structure"]}
    named |= {f"sample {i}": structure for i, structure in enumerate(samples)}
    named |= {f"prototype {i}": structure for i, structure in enumerate(known)}
    rows = tabulate(named, reference, Predictor(calculator.model))
    console.print(_table(rows, calculator))
    console.print(f"   experiment: {SOURCE}", style="dim")

    result = QuickstartResult(out, run, rows, 0.0)
    _write(result, [*samples, *known], reference, console)
    result.seconds = time.perf_counter() - start
    console.print(f"Done in {result.seconds:.0f} s: {len(result.files)} files in [bold]{out}[/]")
    return result


def rattle(structure: Structure, seed: int, displacement: float = 0.1, strain: float = 0.02) -> Structure:
    """Gaussian displacements (A) and a symmetric Gaussian strain."""
    rng = np.random.default_rng(seed)
    atoms = AseAtomsAdaptor.get_atoms(structure, msonable=False)
    deformation = strain * rng.standard_normal((3, 3))
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + (deformation + deformation.T) / 2), scale_atoms=True)
    atoms.positions += displacement * rng.standard_normal((len(atoms), 3))
    return Structure(atoms.cell[:], structure.species, atoms.get_scaled_positions())


def tabulate(named: dict[str, Structure], reference: Structure, predictor: Predictor) -> list[Row]:
    """Energy and match to the reference of every structure, matches first among the samples."""
    weight = next(predictor.model.parameters())
    x = to_batch(list(named.values()), dtype=weight.dtype, device=str(weight.device))
    energies = predictor(x, forces=False)["energy_per_atom"].tolist()
    matcher = MatchTolerances().matcher()
    rows = []
    for (name, structure), energy in zip(named.items(), energies, strict=True):
        found = matcher.get_rms_dist(structure, reference)
        rows.append(Row(name, structure, energy, None if found is None else float(found[0])))
    return rows


def best_sample(rows: list[Row]) -> Row | None:
    """The sample closest to the reference, or of lowest energy where none matches."""
    samples = [row for row in rows if row.name.startswith(("sample", "prototype"))]
    return min(samples, key=lambda r: (r.rms is None, r.rms or 0.0, r.energy_per_atom), default=None)


def _table(rows: list[Row], calculator: DaoCalculator) -> Any:
    from rich.table import Table

    table = Table()
    for column in ("crystal", "formula", "space group", "energy (eV/atom)", "kagome structure?"):
        table.add_column(column)
    for row in rows:
        table.add_row(*row.cells)
    energy = calculator.model.card.get("energy") or {}
    table.caption = f"energy by {calculator.parameters['model']}" + (
        f": {energy['reference']}" if energy.get("reference") else ""
    )
    return table


def _write(result: QuickstartResult, samples: list[Structure], reference: Structure, console: Any) -> None:
    out = result.folder
    out.mkdir(parents=True, exist_ok=True)
    texts = {"experiment.cif": reference, "relaxed.cif": result.relaxation["final_structure"]}
    files = [*texts, "samples.cif.zip", "samples.extxyz", "quickstart.png"]
    if old := [name for name in files if (out / name).exists()]:
        console.print(f"   replacing {', '.join(old)} in {out}", style="yellow")
    for name, structure in texts.items():
        (out / name).write_text(to_cif(structure)[0])
    notes = write_structures(samples, out / "samples.cif.zip")
    write_structures(samples, out / "samples.extxyz")
    for note in notes:
        console.print(f"   {note}", style="yellow")
    picture(result.relaxation, reference, best_sample(result.rows), out / "quickstart.png")
    result.files = [out / name for name in files]


def picture(run: Relaxation[Structure], reference: Structure, best: Row | None, path: Path) -> None:
    """Energy and force along the relaxation; the best sample and the experiment seen along c."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no window, no global state of pyplot
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    energies = np.array(run["trajectory"]["energies"]) / len(reference)
    left.plot(energies, color="tab:blue")
    left.set_xlabel("BFGS step")
    left.set_ylabel("energy (eV/atom)", color="tab:blue")
    force = left.twinx()
    force.semilogy(run["trajectory"]["fmax"], color="tab:red")
    force.set_ylabel("largest force (eV/Å)", color="tab:red")
    left.set_title(f"relaxation of a rattled {FORMULA}")
    _draw(middle, reference, "experiment (P6/mmm)")
    if best is None:
        right.set_axis_off()
        right.set_title("no sample passed the guard")
    else:
        _draw(right, _alike(best, reference), f"{best.name}, {spacegroup(best.structure)}")
    figure.savefig(path, dpi=120)


def _alike(best: Row, reference: Structure) -> Structure:
    """The same crystal in the axes and origin of the reference where they match, so that eyes can compare."""
    if best.rms is None:
        return best.structure
    at = MatchTolerances()
    matcher = StructureMatcher(ltol=at.ltol, stol=at.stol, angle_tol=at.angle_tol, primitive_cell=False)
    return matcher.get_s2_like_s1(reference, best.structure) or best.structure


def _draw(axis: Any, structure: Structure, title: str) -> None:
    """A 2 x 2 projection along c, higher atoms on top, with the V-V bonds that make the kagome net."""
    from ase.data import chemical_symbols, covalent_radii
    from ase.data.colors import jmol_colors

    cell = structure.lattice.matrix
    a = cell[0] / np.linalg.norm(cell[0])  # page axes: x along a, y in the plane of a and b
    b = cell[1] - cell[1] @ a * a
    page = np.stack([a, b / np.linalg.norm(b)], 1)
    sites = [
        (site.specie.Z, (site.frac_coords % 1 + [i, j, 0]) @ cell)
        for site in sorted(structure, key=lambda s: s.frac_coords[2] % 1)
        for i in range(2)
        for j in range(2)
    ]
    for z in dict.fromkeys(z for z, _ in sites):
        axis.plot([], [], "o", color=jmol_colors[z], markeredgecolor="black", label=chemical_symbols[z])
    for order, (z, x) in enumerate(sites):
        look = {"s": 80 * covalent_radii[z] ** 2, "color": [jmol_colors[z]], "edgecolors": "black"}
        axis.scatter(*(x @ page), linewidths=0.6, zorder=2 + order / len(sites), **look)
    vanadium = [x for z, x in sites if chemical_symbols[z] == "V"]
    for n, x in enumerate(vanadium):
        for y in vanadium[:n]:
            if np.linalg.norm(x - y) < 3.0:
                axis.plot(*np.array([x @ page, y @ page]).T, color="dimgray", linewidth=1.5, zorder=1)
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) @ (cell[:2] @ page)
    axis.plot(corners[:, 0], corners[:, 1], color="black", linewidth=0.8, linestyle="--", zorder=1)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, frameon=False)
    axis.set_aspect("equal")
    axis.margins(0.1)
    axis.set_axis_off()
    axis.set_title(title)
