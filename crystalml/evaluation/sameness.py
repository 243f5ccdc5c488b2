"""Uniqueness, novelty and stability of samples, and what is all three."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pymatgen.core import Composition, Structure

from crystalml.evaluation.distributions import Table, numbers, rate
from crystalml.evaluation.result import Metric
from crystalml.evaluation.samples import Crystals
from crystalml.evaluation.store import Store
from crystalml.metrics.duplicates import KnownCrystals, equal_groups
from crystalml.metrics.intervals import bootstrap
from crystalml.metrics.stability import HullTable, sun
from crystalml.progress import ProgressBar

DAO_STABLE = 0.08  # eV/atom above the hull (DAO, section 2.1)


def unique(crystals: Crystals, table: Table, processes: int, progress: bool) -> None:
    """Add the column `group`: the place of the first sample equal to each."""
    done = 0
    with ProgressBar(progress, "uniqueness") as bar:
        bar.add(len(crystals))

        def advance(total: int) -> None:
            nonlocal done
            bar.advance(total - done)
            done = total

        table["group"] = equal_groups(crystals.structures, processes, progress=advance)


def novel(
    crystals: Crystals, table: Table, known: KnownCrystals, store: Store, processes: int, progress: bool
) -> None:
    """Add the columns `known_as` (a known crystal that matches) and `novel`."""

    def compute(structures: list[Structure]) -> Iterator[str | None]:
        for start in range(0, len(structures), 200):
            yield from known.find(structures[start : start + 200], processes)

    kind = f"known crystals {known.digest()}"
    found = store.fill(kind, crystals.structures, crystals.digests(), compute, "novelty", progress)
    table["known_as"] = found
    table["novel"] = [
        structure is not None and name is None
        for structure, name in zip(crystals.structures, found, strict=True)
    ]


def stable(
    table: Table, hull: HullTable, limit: float, model: str, processes: int, seed: int, progress: bool
) -> dict[str, Metric]:
    """Energies above the hull, shares below thresholds, and S.U.N. where the other two are known."""
    energies = numbers(table.get("relaxed_energy_per_atom") or table["energy_per_atom"])
    formulas = [Composition(name) if name else Composition("H") for name in table["formula"]]
    energies[[name is None for name in table["formula"]]] = np.nan
    done = 0
    with ProgressBar(progress, "hull") as bar:
        bar.add(len(energies))

        def advance(total: int) -> None:
            nonlocal done
            bar.advance(total - done)
            done = total

        above = hull.above(formulas, energies, processes, advance)
    sound = np.array([bool(value) for value in table["valid_structure"]])
    above[~sound] = np.nan
    table["energy_above_hull"] = above.tolist()
    finite = above[np.isfinite(above)]
    by = f"energy by {model}, {len(hull):,} known phases"
    found = {
        "stable": rate(
            "stable", above <= limit, f"valid and at most {limit:g} eV/atom above the hull; {by}", seed
        ),
        "stable_dao": rate(
            "stable (DAO)", above <= DAO_STABLE, f"the same with DAO's {DAO_STABLE} eV/atom", seed
        ),
        "on_hull": rate("on or below the hull", above <= 0, f"the same with 0 eV/atom; {by}", seed),
    }
    if len(finite):
        found["hull_median"] = Metric(
            "energy above hull, median", _median(finite), "eV/atom", len(finite),
            bootstrap(_median, finite, seed=seed), note=f"of valid samples; {by}",
        )  # fmt: skip
    if "group" in table and "known_as" in table:
        hits = sun(above <= limit, table["group"], table["known_as"])
        table["sun"] = hits.tolist()
        found["sun"] = rate(
            "S.U.N.", hits, f"stable (at most {limit:g} eV/atom above the hull), unique and novel", seed
        )
    return found


def _median(values: np.ndarray) -> float:
    return float(np.median(values))
