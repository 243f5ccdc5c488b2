"""Metrics of a set of samples against a reference set: distances, Frechet, coverage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalml.errors import InputError
from crystalml.evaluation.facts import local_order
from crystalml.evaluation.result import Metric
from crystalml.evaluation.samples import Crystals
from crystalml.evaluation.store import Store
from crystalml.metrics.coverage import Cutoffs, coverage
from crystalml.metrics.distribution import frechet, measure, total_variation, wasserstein
from crystalml.metrics.embedding import Embedder
from crystalml.metrics.fingerprints import composition_fingerprint
from crystalml.metrics.intervals import bootstrap_ratio

Table = dict[str, list[Any]]
_EMBED = 512  # crystals at a time


def rate(name: str, hits: Sequence[bool] | NDArray[np.bool_], note: str, seed: int) -> Metric:
    """A share of all samples with its bootstrap interval."""
    values = np.asarray(hits, bool)
    interval = bootstrap_ratio(values, np.ones(len(values)), seed)
    return Metric(name, float(values.mean()), "%", len(values), interval, note=note)


def geometry(table: Table, reference: Table, seed: int) -> dict[str, Metric]:
    """W1 of density, volume and number of elements; total variation of space groups."""
    found = {
        "density_wasserstein": _wasserstein("density", "density", "g/cm³", table, reference, seed),
        "volume_wasserstein": _wasserstein("volume", "volume_per_atom", "Å³/atom", table, reference, seed),
        "elements_wasserstein": _wasserstein("elements a crystal", "elements", "", table, reference, seed),
    }
    mine, theirs = _finite(table["spacegroup"]), _finite(reference["spacegroup"])
    found["spacegroup_distance"] = _distance(
        "space groups, total variation", total_variation, mine, theirs, "%", seed,
        "share of samples that would need another space group (spglib, 0.1 A)",
    )  # fmt: skip
    p1 = [value == 1 for value in table["spacegroup"]]
    found["p1"] = rate("P1", p1, "samples without any symmetry, or invalid ones", seed)
    return found


def energy(table: Table, reference: Table, model: str, seed: int) -> dict[str, Metric]:
    """W1 of energies per atom by the named model: of all samples, and of the valid ones."""
    theirs = _finite(reference["energy_per_atom"])
    everything = _finite(table["energy_per_atom"])
    pairs = zip(table["energy_per_atom"], table["valid_structure"], strict=True)
    valid = _finite([value for value, sound in pairs if sound])
    found: dict[str, Metric] = {}
    if not len(theirs):
        return found
    if len(everything):
        note = f"Wasserstein-1 of the energy per atom by {model}, unfiltered but for what it cannot compute"
        found["energy_wasserstein"] = _distance(
            "energy, all samples, W1", wasserstein, everything, theirs, "eV/atom", seed, note
        )
    if len(valid):
        found["energy_valid_wasserstein"] = _distance(
            "energy, valid structures, W1", wasserstein, valid, theirs, "eV/atom", seed, f"by {model}"
        )
    return found


def frechet_distance(mine: Crystals, theirs: Crystals, embedder: Embedder, seed: int) -> dict[str, Metric]:
    """Frechet distance of embedded crystals; FAD where, and only where, the embedder is ALIGNN."""
    mine_rows, their_rows = (_embed(crystals, embedder) for crystals in (mine, theirs))
    name = "FAD" if embedder.name.startswith("ALIGNN") else "Frechet distance"
    note = (
        f"||m1 - m2||^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) of {embedder.name}, d = {mine_rows.shape[1]}; "
        "comparable between equal counts and the same embedder only"
    )
    return {"frechet": _distance(name, frechet, mine_rows, their_rows, "", seed, note)}


def covered(
    mine: Crystals,
    table: Table,
    theirs: Crystals,
    reference: Table,
    store: Store,
    cutoffs: Cutoffs,
    processes: int,
    seed: int,
    progress: bool,
) -> dict[str, Metric]:
    """CDVAE's COV-R and COV-P, and the stricter ones that ask for one crystal near in both."""
    rows = [
        store.each(
            "order 1",
            crystals.structures,
            crystals.digests(),
            local_order,
            processes,
            "local order",
            progress,
        )
        for crystals in (mine, theirs)
    ]
    structures = [[None if row is None else np.array(row) for row in part] for part in rows]
    zero = np.zeros(132)
    compositions = [
        [zero if s is None else composition_fingerprint(s.composition) for s in crystals.structures]
        for crystals in (mine, theirs)
    ]
    try:
        found = coverage(structures[0], compositions[0], structures[1], compositions[1], cutoffs, seed)
    except InputError:  # not one sample with a neighbour
        return {}
    table["covered"], reference["reached"] = found.covered.tolist(), found.reached.tolist()
    limits = f"{cutoffs.structure:g} in CrystalNN order and {cutoffs.composition:g} in Magpie composition"
    each, one = f"within {limits} (each nearest of its own)", f"with one crystal within {limits}"
    n, m = len(mine), len(theirs)
    rows_out = (
        ("coverage_recall", "coverage, recall (COV-R)", found.recall, m, found.recall_interval,
         f"reference crystals with a sample {each}"),
        ("coverage_precision", "coverage, precision (COV-P)", found.precision, n, found.precision_interval,
         f"samples with a reference crystal {each}"),
        ("joint_recall", "coverage, joint recall", found.joint_recall, m, None, f"the same, {one}"),
        ("joint_precision", "coverage, joint precision", found.joint_precision, n, None, f"the same, {one}"),
    )  # fmt: skip
    return {
        key: Metric(name, value, "%", count, interval, note=note)
        for key, name, value, count, interval, note in rows_out
    }


def _wasserstein(name: str, column: str, unit: str, table: Table, reference: Table, seed: int) -> Metric:
    return _distance(
        f"{name}, W1", wasserstein, _finite(table[column]), _finite(reference[column]), unit, seed,
        f"Wasserstein-1 distance of {name}, all readable samples, unfiltered",
    )  # fmt: skip


def _distance(
    name: str,
    function: Callable[[NDArray[Any], NDArray[Any]], float],
    mine: NDArray[Any],
    theirs: NDArray[Any],
    unit: str,
    seed: int,
    note: str,
) -> Metric:
    found = measure(function, mine, theirs, seed)
    return Metric(name, found.value, unit, len(mine), found.interval, found.floor, note)


def _embed(crystals: Crystals, embedder: Embedder) -> NDArray[np.float64]:
    structures = [s for s in crystals.structures if s is not None]
    parts = [embedder(structures[i : i + _EMBED]) for i in range(0, len(structures), _EMBED)]
    rows = np.concatenate(parts)
    return rows[np.isfinite(rows).all(axis=1)]


def _finite(values: Sequence[Any]) -> NDArray[np.float64]:
    numbers = np.array([np.nan if value is None else value for value in values], np.float64)
    return numbers[np.isfinite(numbers)]
