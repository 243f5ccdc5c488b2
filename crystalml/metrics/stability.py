"""Thermodynamic stability: energies above the convex hull of known phases, and S.U.N."""

from __future__ import annotations

import json
import lzma
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core.composition import Composition
from pymatgen.core.periodic_table import Element

from crystalml.elements import atomic_number, symbol
from crystalml.errors import FileReadError, InputError, UnsupportedError
from crystalml.parallel import process_map
from crystalml.replacing import replacing

DEFAULT_HULL = Path(__file__).with_name("hull.json.xz")
STABLE = 0.1  # eV/atom, the usual S.U.N. threshold (MatterGen); DAO calls 0.08 stable
ENERGY_COLUMNS = ("formation_energy_per_atom", "energy_per_atom")
System = frozenset[str]


@dataclass(frozen=True)
class HullTable:
    """The lowest known formation energy of each reduced formula, in eV/atom against the elements.

    Elements are at 0 by definition and need no entry. card: where the energies come from, in words.
    """

    energies: Mapping[str, float]
    card: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_entries(
        formulas: Iterable[str | Composition],
        energies: Iterable[float],
        card: Mapping[str, Any] | None = None,
    ) -> HullTable:
        """The lowest finite energy of each formula. Raises InputError where a formula cannot be read."""
        lowest: dict[str, float] = {}
        for formula, energy in zip(formulas, energies, strict=True):
            name = _reduced(formula)
            if isfinite(energy) and energy < lowest.get(name, inf):
                lowest[name] = float(energy)
        return HullTable(lowest, card or {})

    @staticmethod
    def default() -> HullTable:
        """The shipped table: the phases on and near the hull of CrysDB (see its `card`)."""
        return HullTable.load(DEFAULT_HULL)

    @staticmethod
    def load(path: str | Path) -> HullTable:
        """Read a table from .json, .json.xz, .parquet or .csv.

        JSON holds {"energies": {formula: eV/atom}, "card": {...}}; a table of Parquet or CSV has a column
        `formula` and one of `formation_energy_per_atom`, `energy_per_atom`, against the elements.
        """
        file = Path(path)
        if not file.is_file():
            raise FileReadError(f"{path}: no such hull table; make one with `crystalml hull-table`")
        if file.name.endswith((".json", ".json.xz")):
            return _read_json(file)
        if file.suffix in (".parquet", ".csv"):
            return _read_table(file)
        raise FileReadError(f"{path}: a hull table is a .json, .json.xz, .parquet or .csv file")

    def save(self, path: str | Path) -> None:
        """Write .json or .json.xz, energies rounded to 0.1 meV/atom; the file appears when complete."""
        file = Path(path)
        if not file.name.endswith((".json", ".json.xz")):
            raise InputError(f"cannot tell the format of {str(path)!r}: end it in .json or .json.xz")
        rounded = {name: round(energy, 4) for name, energy in sorted(self.energies.items())}
        text = json.dumps({"card": dict(self.card), "energies": rounded}, separators=(",", ":"))
        data = lzma.compress(text.encode(), preset=9) if file.suffix == ".xz" else text.encode()
        with replacing(file) as partial:
            partial.write_bytes(data)

    def __len__(self) -> int:
        return len(self.energies)

    @cached_property
    def _systems(self) -> dict[System, list[tuple[str, float]]]:
        systems: dict[System, list[tuple[str, float]]] = defaultdict(list)
        for formula, energy in self.energies.items():
            systems[frozenset(_symbols(formula))].append((formula, energy))
        return systems

    def phases(self, elements: Collection[str]) -> dict[str, float]:
        """formula -> formation energy (eV/atom) of all entries made of these elements only, elements too."""
        for name in elements:
            if not Element.is_valid_symbol(name):
                raise InputError(f"{name!r} is no element; write a system as symbols, such as Li, Fe, O")
        chosen = sorted({symbol(atomic_number(name)) for name in elements})  # deuterium is hydrogen here
        found = dict.fromkeys(chosen, 0.0)
        for size in range(2, len(chosen) + 1):
            for system in combinations(chosen, size):
                found.update(self._systems.get(frozenset(system), ()))
        return found

    def diagram(self, elements: Collection[str]) -> PhaseDiagram:
        """pymatgen's phase diagram of a chemical system."""
        return build_diagram(self.phases(elements))

    def above(
        self,
        compositions: Sequence[Composition],
        energies: Sequence[float] | NDArray[np.float64],
        processes: int = 1,
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float64]:
        """(n,) energy above the hull, eV/atom: formation energy per atom minus that of known phases mixed.

        Negative for what lies below every mixture of known phases. NaN where the energy is. The hull is
        built once for each chemical system; systems are spread over processes.
        """
        by_system: dict[System, list[int]] = defaultdict(list)
        plain = [_plain(composition) for composition in compositions]
        for place in range(len(plain)):
            if isfinite(energies[place]):
                by_system[frozenset(plain[place].chemical_system_set)].append(place)
        out = np.full(len(compositions), np.nan)
        work = [
            _Task(self.phases(system), [plain[i] for i in places]) for system, places in by_system.items()
        ]
        done = len(compositions) - sum(map(len, by_system.values()))
        for places, hull in zip(
            by_system.values(), process_map(_hull, work, processes, chunk=16), strict=True
        ):
            out[places] = np.asarray(energies, np.float64)[places] - hull
            done += len(places)
            if progress is not None:
                progress(done)
        return out

    def pruned(self, margin: float = 0.0, processes: int = 1) -> HullTable:
        """Only what lies at most `margin` eV/atom above the hull: still the same hull, in less space."""
        names = list(self.energies)
        above = self.above([Composition(n) for n in names], [self.energies[n] for n in names], processes)
        kept = {n: self.energies[n] for n, e in zip(names, above, strict=True) if e <= margin + 1e-6}
        return HullTable(kept, self.card)


def build_diagram(phases: Mapping[str, float]) -> PhaseDiagram:
    """pymatgen's phase diagram of formula -> formation energy (eV/atom), the elements among them."""
    return PhaseDiagram([_entry(formula, energy) for formula, energy in phases.items()])


def sun(
    stable: Sequence[bool] | NDArray[np.bool_], group: Sequence[int], known: Sequence[str | None]
) -> NDArray[np.bool_]:
    """(n,) stable, unique and novel: of each group of equal samples, the first stable one that is not known.

    group: the answer of `duplicates.equal_groups`; known: that of `KnownCrystals.find`. As in MatterGen, the
    rate is taken over all samples.
    """
    seen: set[int] = set()
    out = np.zeros(len(stable), bool)
    for place, (is_stable, name, twin) in enumerate(zip(stable, group, known, strict=True)):
        out[place] = is_stable and twin is None and name not in seen
        if out[place]:
            seen.add(name)
    return out


@dataclass(frozen=True)
class _Task:
    phases: dict[str, float]
    compositions: list[Composition]


def _hull(task: _Task) -> list[float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen misses the electronegativity of helium every time
        diagram = build_diagram(task.phases)
        return [float(diagram.get_hull_energy_per_atom(c)) for c in task.compositions]


def _entry(formula: str, energy: float) -> PDEntry:
    composition = Composition(formula)
    return PDEntry(composition, energy * composition.num_atoms)


def _plain(composition: Composition) -> Composition:
    """Elements without charges, deuterium as hydrogen."""
    amounts: dict[str, float] = defaultdict(float)
    for name, amount in composition.get_el_amt_dict().items():
        amounts[symbol(atomic_number(name))] += amount
    return Composition(amounts)


def _reduced(formula: str | Composition) -> str:
    try:
        composition = Composition(formula)
    except (ValueError, TypeError) as error:
        raise InputError(f"{formula!r} is no chemical formula: {error}") from error
    if not (composition and all(Element.is_valid_symbol(str(part)) for part in composition)):
        raise InputError(f"{formula!r} is no chemical formula: it holds more than plain elements, or nothing")
    return composition.reduced_formula


def _symbols(formula: str) -> Iterator[str]:
    """Element symbols of a reduced formula, without the cost of a Composition."""
    start = 0
    for place, letter in enumerate(formula[1:], start=1):
        if letter.isupper():
            yield formula[start:place].rstrip("0123456789.()")
            start = place
    yield formula[start:].rstrip("0123456789.()")


def _read_json(file: Path) -> HullTable:
    try:
        raw = file.read_bytes()
        content = json.loads(lzma.decompress(raw) if file.suffix == ".xz" else raw)
        return HullTable({str(k): float(v) for k, v in content["energies"].items()}, content.get("card", {}))
    except (OSError, lzma.LZMAError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileReadError(
            f"{file} is no hull table ({type(error).__name__}: {error}); see HullTable.load for the format"
        ) from error


def _read_table(file: Path) -> HullTable:
    import pandas

    try:
        frame = pandas.read_parquet(file) if file.suffix == ".parquet" else pandas.read_csv(file)
    except ImportError as error:
        raise UnsupportedError('reading parquet needs pyarrow: pip install "crystalml-dao[data]"') from error
    except (OSError, ValueError) as error:
        raise FileReadError(f"{file}: {error}") from error
    column = next((name for name in ENERGY_COLUMNS if name in frame), None)
    if column is None or "formula" not in frame:
        raise FileReadError(
            f"{file} has the columns {', '.join(map(str, frame))}; a hull table needs `formula` and "
            f"one of {', '.join(ENERGY_COLUMNS)} (eV/atom, against the elements)"
        )
    return HullTable.from_entries(frame["formula"], frame[column], {"source": file.name, "column": column})
