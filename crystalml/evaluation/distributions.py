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
Partners = NDArray[np.int64] | None  # (n,) the reference crystal each sample stands for, -1 for none
_EMBED = 512  # crystals at a time


def rate(name: str, hits: Sequence[bool] | NDArray[np.bool_], note: str, seed: int) -> Metric:
    """A share of all samples with its bootstrap interval."""
    values = np.asarray(hits, bool)
    interval = bootstrap_ratio(values, np.ones(len(values)), seed)
    return Metric(name, float(values.mean()), "%", len(values), interval, note=note)


def geometry(table: Table, reference: Table, partners: Partners, seed: int) -> dict[str, Metric]:
    """W1 of density, volume and number of elements; total variation of space groups."""
    quantities = (
        ("density", "density", "g/cm³"),
        ("volume", "volume_per_atom", "Å³/atom"),
        ("elements", "elements", ""),
    )
    found = {
        f"{name}_wasserstein": _distance(
            f"{name}, W1", wasserstein, numbers(table[column]), numbers(reference[column]), partners, unit,
            seed, f"Wasserstein-1 distance of {column.replace('_', ' ')}, all readable samples, unfiltered",
        )
        for name, column, unit in quantities
    }  # fmt: skip
    found["spacegroup_distance"] = _distance(
        "space groups, total variation", total_variation, numbers(table["spacegroup"]),
        numbers(reference["spacegroup"]), partners, "%", seed,
        "share of samples that would need another space group (spglib, 0.1 A)",
    )  # fmt: skip
    p1 = [value == 1 for value in table["spacegroup"]]
    found["p1"] = rate("P1", p1, "samples without any symmetry, or invalid ones", seed)
    return found


def energy(table: Table, reference: Table, partners: Partners, model: str, seed: int) -> dict[str, Metric]:
    """W1 of energies per atom by the named model: of all samples, and of the valid ones."""
    theirs, mine = numbers(reference["energy_per_atom"]), numbers(table["energy_per_atom"])
    valid = np.where([bool(sound) for sound in table["valid_structure"]], mine, np.nan)
    note = f"Wasserstein-1 of the energy per atom by {model}, unfiltered but for what it cannot compute"
    kinds = (("energy_wasserstein", "all samples", mine, note),
             ("energy_valid_wasserstein", "valid structures", valid, f"by {model}"))  # fmt: skip
    return {
        key: _distance(f"energy, {which}, W1", wasserstein, values, theirs, partners, "eV/atom", seed, about)
        for key, which, values, about in kinds
        if np.isfinite(values).any() and np.isfinite(theirs).any()
    }


def frechet_distance(
    mine: Crystals, theirs: Crystals, partners: Partners, embedder: Embedder, seed: int
) -> dict[str, Metric]:
    """Frechet distance of embedded crystals; FAD where, and only where, the embedder is ALIGNN."""
    rows, reference = (_embed(crystals, embedder) for crystals in (mine, theirs))
    name = "FAD" if embedder.name.startswith("ALIGNN") else "Frechet distance"
    note = (
        f"||m1 - m2||^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) of {embedder.name}, d = {rows.shape[1]}; "
        "comparable between equal counts and the same embedder only"
    )
    return {"frechet": _distance(name, frechet, rows, reference, partners, "", seed, note)}


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


def numbers(values: Sequence[Any]) -> NDArray[np.float64]:
    """A column as an array, NaN where there is nothing."""
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _distance(
    name: str,
    function: Callable[[NDArray[Any], NDArray[Any]], float],
    mine: NDArray[np.float64],
    theirs: NDArray[np.float64],
    partners: Partners,
    unit: str,
    seed: int,
    note: str,
) -> Metric:
    """The distance of the rows that are finite, with partners renumbered accordingly.

    Reference crystals all of whose samples drop out stay, and are redrawn as such.
    """
    good, good_reference = (np.isfinite(rows.reshape(len(rows), -1)).all(axis=1) for rows in (mine, theirs))
    matched = None
    if partners is not None:
        good &= (partners >= 0) & good_reference[partners]
        matched = (np.cumsum(good_reference) - 1)[partners[good]]
    found = measure(function, mine[good], theirs[good_reference], seed, partners=matched)
    return Metric(name, found.value, unit, found.count, found.interval, found.floor, note)


def _embed(crystals: Crystals, embedder: Embedder) -> NDArray[np.float64]:
    """(n, d), rows of NaN for crystals that could not be read."""
    places = crystals.readable
    structures = [crystals.structures[i] for i in places]
    parts = [
        embedder([s for s in structures[i : i + _EMBED] if s is not None])
        for i in range(0, len(places), _EMBED)
    ]
    rows = np.concatenate(parts)
    out = np.full((len(crystals), rows.shape[1]), np.nan)
    out[places] = rows
    return out
