"""`evaluate`: judge the samples of any generator against a reference, a set of known crystals and a hull."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from crystalml.benchmarks.report import environment
from crystalml.datasets.arrays import Arrays
from crystalml.device import pick_device
from crystalml.embedders import load_embedder
from crystalml.errors import InputError
from crystalml.evaluation import distributions, matching, sameness
from crystalml.evaluation.facts import Energies, Relaxer, basic, from_plain
from crystalml.evaluation.result import Evaluation, Metric
from crystalml.evaluation.samples import Crystals, Source, read_crystals, read_table
from crystalml.evaluation.store import Store
from crystalml.metrics.coverage import DEFAULT_CUTOFFS, Cutoffs
from crystalml.metrics.duplicates import KnownCrystals
from crystalml.metrics.embedding import Embedder
from crystalml.metrics.stability import STABLE, HullTable
from crystalml.models.model import CrystalModel
from crystalml.weights import DEFAULT_POTENTIAL, as_model
from crystalml.weights.registry import fingerprint

GROUPS = (
    "validity", "distribution", "energy", "frechet", "coverage",
    "match", "gated", "uniqueness", "novelty", "stability",
)  # fmt: skip


@dataclass(frozen=True)
class _Settings:
    """How to judge: the arguments of `evaluate` that are no crystals."""

    energy_model: str | Path | CrystalModel
    embedder: Any
    hull: str | Path | HullTable | None
    stable: float
    relax_steps: int
    shots: Sequence[int]
    cutoffs: Cutoffs
    processes: int
    seed: int
    device: str | None
    progress: bool

    def __post_init__(self) -> None:
        if self.processes < 1 or self.relax_steps < 0 or not self.shots or min(self.shots) < 1:
            raise InputError(
                "processes and shots must be at least 1, relax_steps at least 0, not "
                f"{self.processes!r}, {list(self.shots)!r} and {self.relax_steps!r}"
            )


def evaluate(
    generated: Source,
    reference: Source | None = None,
    *,
    known: Source | None = None,
    metrics: Collection[str] | None = None,
    out: str | Path | None = None,
    energy_model: str | Path | CrystalModel = DEFAULT_POTENTIAL,
    embedder: Any = None,
    hull: str | Path | HullTable | None = None,
    stable: float = STABLE,
    relax_steps: int = 0,
    shots: Sequence[int] = (1, 20),
    cutoffs: Cutoffs = DEFAULT_CUTOFFS,
    processes: int = 1,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
) -> Evaluation:
    """Judge samples: validity, distributions, coverage, match rate, uniqueness, novelty, stability, S.U.N.

    generated, reference, known: files, folders, globs, Parquet tables ("table.parquet#split") or structures
    in memory, see `read_crystals`. reference: what the samples should be distributed like, and their targets
    if they have some; known: what is not novel (a generator's training set; default: the reference). Without
    a reference only what needs none is measured. metrics: some of GROUPS; None for all that can be. "gated",
    the published gate on "match", takes most of the time. out: folder for results as they come; the same call
    goes on where it was stopped, and further evaluations there reuse what they share. `Evaluation.save` makes
    table and report.

    energy_model: for energies, relaxation and hull. embedder: see `load_embedder`. hull: a table or its file,
    see `HullTable`; None for the shipped one. stable: eV/atom above the hull that still count as stable.
    relax_steps: relax samples before hull, uniqueness and novelty (0: as they are). shots, cutoffs: of match
    rate and coverage. processes: for matching and symmetry. seed: of the bootstrap.

    Every rate is over all samples, the unreadable included. Raises InputError for what cannot be judged.
    """
    settings = _Settings(
        energy_model, embedder, hull, stable, relax_steps, shots, cutoffs, processes, seed, device, progress
    )
    job = _Job(settings, _groups(metrics), Store(None if out is None else Path(out, "cache")))
    theirs = None if reference is None else read_crystals(reference)
    if theirs is not None and len(theirs.readable) < len(theirs):
        bad = theirs.structures.index(None)
        raise InputError(f"the reference cannot be read: {theirs.names[bad]}: {theirs.reasons[bad]}")
    mine = read_crystals(generated, theirs)
    if not mine.readable:
        raise InputError(f"none of the {len(mine)} samples can be read; the first: {mine.reasons[0]}")
    return job.run(mine, theirs, known)


def _groups(metrics: Collection[str] | None) -> frozenset[str]:
    if metrics is None:
        return frozenset(GROUPS)
    if unknown := sorted(set(metrics) - set(GROUPS)):
        raise InputError(f"unknown metrics {', '.join(unknown)}; choose from {', '.join(GROUPS)}")
    if "gated" in metrics and "match" not in metrics:
        raise InputError("'gated' is the validity gate of match rates: ask for 'match' with it")
    return frozenset(metrics)


class _Job:
    """One evaluation on its way: what is known of the samples and the reference so far."""

    def __init__(self, settings: _Settings, groups: frozenset[str], store: Store) -> None:
        self.settings, self.groups, self.store = settings, groups, store
        self.metrics: dict[str, Metric] = {}
        self.notes: dict[str, Any] = {"metrics": sorted(groups), "seed": settings.seed}

    def run(self, mine: Crystals, theirs: Crystals | None, known: Source | None) -> Evaluation:
        table = self._table(mine)
        reference = self._table(theirs) if theirs is not None else {}
        self._validity(mine, table)
        energies = self._energies(mine, table, theirs, reference)
        if theirs is not None:
            self._compare(mine, table, theirs, reference)
        self._sameness(mine, table, theirs, known, energies)
        self.notes |= {
            "samples": len(mine),
            "readable": len(mine.readable),
            "reference_crystals": 0 if theirs is None else len(theirs),
            "environment": environment(pick_device(self.settings.device)),
        }
        return Evaluation(self.metrics, table, self.notes, mine.structures, reference)

    # --- each crystal on its own ---------------------------------------------------------------------------
    def _table(self, crystals: Crystals) -> dict[str, list[Any]]:
        rows = self.store.each(
            "geometry 1" if find_spec("smact") else "geometry 1 without smact",
            crystals.structures,
            crystals.digests(),
            basic,
            self.settings.processes,
            "geometry",
            self.settings.progress,
        )
        names = (
            "valid_structure",
            "valid_composition",
            "density",
            "volume_per_atom",
            "elements",
            "spacegroup",
        )
        structures = crystals.structures
        return {
            "name": list(crystals.names),
            "formula": [None if s is None else s.composition.reduced_formula for s in structures],
            "atoms": [None if s is None else len(s) for s in structures],
            "unreadable": list(crystals.reasons),
            **{name: [None if row is None else row[name] for row in rows] for name in names},
        }

    def _validity(self, mine: Crystals, table: dict[str, list[Any]]) -> None:
        if "validity" not in self.groups:
            return
        sound = [bool(value) for value in table["valid_structure"]]
        self.rate(
            "valid_structure", "valid structure", sound,
            "no two atoms closer than 0.5 A (images of the same atom included), volume at least 0.1 A^3",
        )  # fmt: skip
        if any(value is None for i in mine.readable for value in (table["valid_composition"][i],)):
            self.notes["composition"] = 'not tested: pip install "crystalml-dao[metrics]"'
            return
        neutral = [bool(value) for value in table["valid_composition"]]
        self.rate(
            "valid_composition", "valid composition", neutral,
            "charge-neutral by SMACT with ordered electronegativities, or metals only",
        )  # fmt: skip
        both = [a and b for a, b in zip(sound, neutral, strict=True)]
        self.rate("valid", "valid structure and composition", both, "both of the above (CDVAE, DiffCSP)")

    def _energies(
        self,
        mine: Crystals,
        table: dict[str, list[Any]],
        theirs: Crystals | None,
        reference: dict[str, list[Any]],
    ) -> Crystals:
        """Add energies to both tables; return the samples as they are after relaxation, if there is one."""
        if not self.groups & {"energy", "stability"}:
            return mine
        model = as_model(self.settings.energy_model, pick_device(self.settings.device), torch.float32)
        weights = fingerprint(model)
        name = model.card.get("name") or str(model.card.get("source", "custom"))
        self.notes |= {"energy_model": name, "energy_weights": weights}
        if card := model.card.get("energy"):
            self.notes["energy_scale"] = f"{card['units']}; {card['reference']}"
        energies, kind = Energies(model), f"energy {weights}"
        settings = self.settings
        for crystals, columns in ((mine, table), (theirs, reference)):
            if crystals is not None and (columns is table or "energy" in self.groups):
                columns["energy_per_atom"] = self.store.fill(
                    kind, crystals.structures, crystals.digests(), energies, "energies", settings.progress
                )
        if not settings.relax_steps:
            return mine
        rows = self.store.fill(
            f"relaxed {weights} {settings.relax_steps}",
            mine.structures,
            mine.digests(),
            Relaxer(model, settings.relax_steps),
            "relaxation",
            settings.progress,
        )
        self.notes["relax_steps"] = settings.relax_steps
        table["relaxed_energy_per_atom"] = [None if row is None else row["energy_per_atom"] for row in rows]
        table["relaxation_converged"] = [None if row is None else row["converged"] for row in rows]
        final = [None if row is None else from_plain(row) for row in rows]
        return Crystals(mine.names, final, mine.reasons, mine.targets)

    # --- against others ------------------------------------------------------------------------------------
    def _compare(
        self, mine: Crystals, table: dict[str, list[Any]], theirs: Crystals, reference: dict[str, list[Any]]
    ) -> None:
        settings, groups = self.settings, self.groups
        pairs = matching.partners(mine, theirs)
        self.notes["paired_draws"] = pairs is not None
        if "distribution" in groups:
            self.metrics |= distributions.geometry(table, reference, pairs, settings.seed)
        if "energy" in groups:
            model = self.notes["energy_model"]
            self.metrics |= distributions.energy(table, reference, pairs, model, settings.seed)
        if "frechet" in groups and min(len(mine.readable), len(theirs)) < 2:
            self.notes["frechet"] = "not measured: a covariance needs 2 crystals on both sides"
        elif "frechet" in groups:
            embedder: Embedder = load_embedder(settings.embedder, settings.device)
            self.notes["embedder"] = embedder.name
            self.metrics |= distributions.frechet_distance(mine, theirs, pairs, embedder, settings.seed)
        if "coverage" in groups:
            self.metrics |= distributions.covered(
                mine, table, theirs, reference, self.store, settings.cutoffs, settings.processes,
                settings.seed, settings.progress,
            )  # fmt: skip
        if "match" in groups:
            found, pairing = matching.match(
                mine, table, theirs, self.store, settings.shots, "gated" in groups, settings.processes,
                settings.seed, settings.progress,
            )  # fmt: skip
            self.metrics |= found
            self.notes["pairing"] = pairing

    def _sameness(
        self,
        mine: Crystals,
        table: dict[str, list[Any]],
        theirs: Crystals | None,
        known: Source | None,
        final: Crystals,
    ) -> None:
        settings, groups = self.settings, self.groups
        if "uniqueness" in groups:
            sameness.unique(final, table, settings.processes, settings.progress)
            first = [
                s is not None and group == i
                for i, (s, group) in enumerate(zip(mine.structures, table["group"], strict=True))
            ]
            self.rate(
                "unique", "unique", first,
                "samples that equal no earlier one (StructureMatcher 0.2, 0.3, 5); falls with their number",
            )  # fmt: skip
        source = _known(known, theirs)
        if "novelty" in groups and source is not None:
            sameness.novel(final, table, source, self.store, settings.processes, settings.progress)
            self.notes["known"] = f"{len(source):,} crystals"
            of = "the known crystals" if known is not None else "the reference"
            new = [bool(value) for value in table["novel"]]
            self.rate(
                "novel", "novel", new, f"samples that match none of {of} (StructureMatcher 0.2, 0.3, 5)"
            )
        if "stability" in groups:
            hull = self.settings.hull
            hull = (
                hull if isinstance(hull, HullTable) else HullTable.load(hull) if hull else HullTable.default()
            )
            self.notes["hull"] = hull.card.get("name") or hull.card.get("source") or "given table"
            self.metrics |= sameness.stable(
                table, hull, settings.stable, self.notes["energy_model"], settings.processes,
                settings.seed, settings.progress,
            )  # fmt: skip

    def rate(self, key: str, name: str, hits: Sequence[bool], note: str) -> None:
        self.metrics[key] = distributions.rate(name, hits, note, self.settings.seed)


def _known(known: Source | None, theirs: Crystals | None) -> KnownCrystals | None:
    """Tables stay tables: only the crystals that share a formula with a sample become structures."""
    if known is None:
        if theirs is None:
            return None
        structures = [s for s in theirs.structures if s is not None]
        return KnownCrystals(structures, theirs.names)
    if isinstance(known, Arrays):
        return KnownCrystals(known)
    if isinstance(known, str | Path) and str(known).partition("#")[0].endswith(".parquet"):
        return KnownCrystals(read_table(known))
    crystals = read_crystals(known)
    pairs = [(n, s) for n, s in zip(crystals.names, crystals.structures, strict=True) if s is not None]
    return KnownCrystals([s for _, s in pairs], [n for n, _ in pairs])
