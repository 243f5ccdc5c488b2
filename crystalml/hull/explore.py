"""`explore`: draw crystals of many compositions of a system, relax them, compare with known phases."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition, Element, Structure

from crystalml.composition import parse_composition
from crystalml.device import pick_device
from crystalml.elements import atomic_number, symbol
from crystalml.errors import CrystalMLError, InputError, UnsupportedError
from crystalml.generate import Strategy
from crystalml.hull.picture import SAMPLE
from crystalml.hull.result import Exploration, Phase
from crystalml.journal import Journal
from crystalml.metrics.stability import HullTable, build_diagram
from crystalml.metrics.validity import is_valid_composition
from crystalml.progress import ProgressBar
from crystalml.relax import relax
from crystalml.weights import DEFAULT_POTENTIAL, as_model
from crystalml.weights.registry import fingerprint

if TYPE_CHECKING:
    from crystalml.models.model import CrystalModel

Draw = Callable[[str, int], Sequence[Structure]]
"""(formula, n) -> up to n structures of it, such as `StructureGenerator().sample`."""


def explore(
    system: str | Sequence[str],
    draw: Draw | None = None,
    *,
    formulas: Sequence[str] | None = None,
    max_formula_atoms: int = 8,
    max_formulas: int = 40,
    n: int = 8,
    strategy: str = "prototype",
    energy_model: str | os.PathLike[str] | CrystalModel = DEFAULT_POTENTIAL,
    hull: str | Path | HullTable | None = None,
    max_steps: int = 200,
    out: str | Path | None = None,
    name: str | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> Exploration:
    """Sample a chemical system ("Li-Fe-O") and set the relaxed crystals against the hull of known phases.

    draw: any generator as a function (formula, n) -> structures; None is `StructureGenerator().sample` with
    `strategy` and `seed`. formulas: what to sample; None for those of `candidates`. n structures each are
    drawn and relaxed (max_steps) with the potential `energy_model`; the lowest energy counts. hull: a
    table, see `HullTable`; None is the shipped one. out: folder of the journal, where the same call goes on
    after a stop; `name` says there what `draw` is.

    The hull is DFT's, the samples' energies are the potential's: read energies above hull with its error in
    mind (`Exploration.shift` measures it on the formulas that both know). Raises InputError.
    """
    elements = chemical_system(system)
    table = hull if isinstance(hull, HullTable) else HullTable.load(hull) if hull else HullTable.default()
    known = table.phases(elements)
    if n < 1 or max_formulas < 1 or max_formula_atoms < 2:
        values = f"n {n}, max_formulas {max_formulas}, max_formula_atoms {max_formula_atoms}"
        raise InputError(f"n and max_formulas must be at least 1, max_formula_atoms at least 2, not {values}")
    if draw is None and strategy not in get_args(Strategy):
        raise InputError(f"strategy must be one of {', '.join(get_args(Strategy))}, not {strategy!r}")
    wanted = (
        _given(formulas, elements)
        if formulas
        else candidates(elements, known, max_formula_atoms, max_formulas)
    )
    model = as_model(energy_model, pick_device(device), torch.float32)
    settings = {
        "system": "-".join(elements),
        "n": n,
        "draw": name or (strategy if draw is None else getattr(draw, "__name__", "custom")),
        "seed": seed if draw is None else None,
        "energy_model": model.card.get("name", "custom"),
        "energy_weights": fingerprint(model),
        "max_steps": max_steps,
    }
    rows = _sample(
        wanted, draw or _generator(strategy, seed, device), model, settings, n, max_steps, out, progress
    )
    phases = [_phase(name, rows[name], known, table) for name in wanted]
    return _against(elements, phases, known, settings)


def chemical_system(system: str | Sequence[str]) -> tuple[str, ...]:
    """ "Li-Fe-O" or symbols -> sorted, distinct symbols. Raises InputError for what is no element."""
    parts = system.split("-") if isinstance(system, str) else list(system)
    names = sorted({part.strip() for part in parts})
    wrong = [name for name in names if not Element.is_valid_symbol(name)]
    if wrong or not names:
        raise InputError(
            f"{system!r} is no chemical system: write symbols joined by hyphens, such as Li-Fe-O"
        )
    return tuple(sorted({symbol(atomic_number(name)) for name in names}))  # deuterium is hydrogen here


def candidates(
    elements: Collection[str], known: Mapping[str, float], max_formula_atoms: int = 8, limit: int = 40
) -> list[str]:
    """Reduced formulas worth sampling: known phases first, then neutral ones, then others, small ones first.

    All formulas of two or more of the elements with at most max_formula_atoms atoms. Neutral: by SMACT's
    oxidation states or metals only (`metrics.validity`); without SMACT the order is by size alone.
    """
    found: dict[str, Composition] = {}
    for size in range(2, len(elements) + 1):
        for chosen in combinations(sorted(elements), size):
            for amounts in product(range(1, max_formula_atoms - size + 2), repeat=size):
                if sum(amounts) <= max_formula_atoms and math.gcd(*amounts) == 1:
                    composition = Composition(dict(zip(chosen, amounts, strict=True)))
                    found[composition.reduced_formula] = composition
    for formula in known:
        if (composition := Composition(formula)).num_atoms <= 2 * max_formula_atoms and len(composition) > 1:
            found.setdefault(formula, composition)

    def rank(formula: str) -> tuple[bool, bool, float, str]:
        composition = found[formula]
        return (formula not in known, not _neutral(composition), composition.num_atoms, formula)

    return sorted(found, key=rank)[:limit]


def _neutral(composition: Composition) -> bool:
    try:
        return is_valid_composition(composition)
    except UnsupportedError:
        return True


def _given(formulas: Iterable[str], elements: Collection[str]) -> list[str]:
    names = []
    for formula in formulas:
        composition = parse_composition(formula)
        if strange := sorted({e.symbol for e in composition.elements} - set(elements)):
            raise InputError(f"{formula} holds {', '.join(strange)}, which {'-'.join(elements)} does not")
        names.append(composition.reduced_formula)
    return list(dict.fromkeys(names))


def _generator(strategy: str, seed: int, device: str | None) -> Draw:
    from crystalml.generate import StructureGenerator

    generator = StructureGenerator(device=device)

    def draw(formula: str, n: int) -> Sequence[Structure]:
        found: list[Structure] = generator.sample(formula, n, strategy=strategy, seed=seed, progress=False)  # type: ignore[arg-type]  # checked by sample
        return found

    return draw


def _sample(
    wanted: Sequence[str],
    draw: Draw,
    model: CrystalModel,
    settings: Mapping[str, Any],
    n: int,
    max_steps: int,
    out: str | Path | None,
    progress: bool,
) -> dict[str, dict[str, Any]]:
    """formula -> what became of it, from the journal or anew; each is on disk before the next begins."""
    journal = None if out is None else Journal(Path(out), "samples.jsonl")
    rows = {row["formula"]: row for row in (journal.open(settings) if journal else [])}
    with ProgressBar(progress, "-".join(chemical_system(settings["system"]))) as bar:
        bar.add(len(wanted))
        for formula in wanted:
            if formula not in rows:
                rows[formula] = _one(formula, draw, model, n, max_steps)
                if journal:
                    journal.append([rows[formula]])
            bar.advance(1)
    return rows


def _one(formula: str, draw: Draw, model: CrystalModel, n: int, max_steps: int) -> dict[str, Any]:
    """Draw, relax, keep the lowest: a row of the journal. A formula that fails does not stop the others."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # too few prototypes, failed relaxations: counted in the row
            drawn = list(draw(formula, n))
            results = relax(drawn, model, max_steps=max_steps, progress=False) if drawn else []
    except CrystalMLError as error:
        return {"formula": formula, "samples": 0, "error": str(error)}
    able = [result for result in results if not result["error"] and math.isfinite(result["energy"])]
    if not able:
        reason = results[0]["error"] if results else "the generator drew nothing"
        return {"formula": formula, "samples": len(drawn), "error": reason}
    best = min(able, key=lambda result: result["energy"] / len(result["final_structure"]))
    final = best["final_structure"]
    count = len(final)
    return {
        "formula": formula,
        "samples": len(drawn),
        "error": "",
        "structure": final.as_dict(),
        "energy_per_atom": best["energy"] / count,
        "converged": bool(best["converged"]),
        "spacegroup": best["spacegroup_after"],
        "energy_uncertainty": best["energy_uncertainty"] / count if "energy_uncertainty" in best else None,
    }


def _phase(formula: str, row: Mapping[str, Any], known: Mapping[str, float], table: HullTable) -> Phase:
    if row["error"]:
        return Phase(
            formula, known_energy_per_atom=known.get(formula), samples=row["samples"], error=row["error"]
        )
    energy = float(row["energy_per_atom"])
    return Phase(
        formula=formula,
        structure=Structure.from_dict(row["structure"]),
        formation_energy_per_atom=energy,
        energy_above_hull=float(table.above([Composition(formula)], [energy])[0]),
        known_energy_per_atom=known.get(formula),
        spacegroup=row["spacegroup"],
        samples=row["samples"],
        converged=row["converged"],
        energy_uncertainty=row["energy_uncertainty"],
    )


def _against(
    elements: tuple[str, ...], phases: list[Phase], known: dict[str, float], settings: dict[str, Any]
) -> Exploration:
    """The samples among the known phases, in one diagram."""
    entries = list(build_diagram(known).all_entries)
    for phase in phases:
        if phase.structure is not None:
            composition = Composition(phase.formula)
            energy = phase.formation_energy_per_atom * composition.num_atoms
            entries.append(PDEntry(composition, energy, attribute=SAMPLE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diagram = PhaseDiagram(entries)
    corners = {
        entry.composition.reduced_formula
        for entry in diagram.stable_entries
        if getattr(entry, "attribute", None)
    }
    placed = [_replace(phase, on_new_hull=phase.formula in corners) for phase in phases]
    placed.sort(key=lambda phase: (math.isnan(phase.energy_above_hull), phase.energy_above_hull))
    return Exploration(elements, placed, known, diagram, settings)


def _replace(phase: Phase, **fields: Any) -> Phase:
    if phase.structure is not None:
        phase.structure.properties.update(
            formation_energy_per_atom=phase.formation_energy_per_atom,
            energy_above_hull=phase.energy_above_hull,
            converged=phase.converged,
        )
    return replace(phase, **fields)
