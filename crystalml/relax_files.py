"""Relaxation of files and folders: in memory, or into a folder where a stopped run goes on."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator
from pymatgen.core import Structure

from crystalml.errors import FileReadError, InputError
from crystalml.files import expand, parse, stem
from crystalml.journal import Journal
from crystalml.models.model import CrystalModel
from crystalml.predict import Predictor
from crystalml.progress import ProgressBar
from crystalml.relax import Model, Relaxation, as_engine, failed, relax_each
from crystalml.relaxation.settings import RelaxSettings
from crystalml.replacing import replacing
from crystalml.weights.registry import fingerprint
from crystalml.write import check_fits, check_format, write_structures

Paths = str | Path | Iterable[str | Path]
Row = dict[str, Any]
OnDone = Callable[[str, Relaxation[Any]], None]
FORMATS = ("cif", "extxyz")
ROWS, TABLE = "results.jsonl", "results.csv"
_FIGURES = (
    "energy", "energy_uncertainty", "converged", "n_steps", "fmax", "spacegroup_before", "spacegroup_after",
    "error",
)  # fmt: skip
_COLUMNS = ("name", "structure", "formula", "n_atoms", "energy_per_atom", *_FIGURES)


@dataclass
class RelaxReport:
    """Relaxed crystals by name, and what could not be read or relaxed, with the reason."""

    results: list[tuple[str, Relaxation[Any]]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class FolderReport:
    """rows: one for each crystal of the input, as in `results.jsonl`, in its order, failed ones among them.

    skipped: how many of them an earlier run had done. notes: CIFs that had to be written in P1, and why.
    """

    rows: list[Row] = field(default_factory=list)
    skipped: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[tuple[str, str]]:
        return [(row["name"], row["error"]) for row in self.rows if row["error"]]


def relax_files(
    paths: Paths,
    model: Model = None,
    settings: RelaxSettings | None = None,
    *,
    out: str | Path | None = None,
    on_done: OnDone | None = None,
    progress: bool = True,
) -> RelaxReport:
    """Relax every crystal in files, folders or globs; a bad one is reported and the others go on.

    A name is a file's path, with @frame where it holds several. Models as in `relax`. on_done(name, result)
    is called after each, in the order in which they get done; the report keeps the order of the files.
    out: the file that `write_structures` will get. What its format cannot hold is reported and not relaxed;
    where it is among the inputs, or there can be no such file, InputError is raised.
    """
    files = _files(paths)
    if out is not None:
        check_format(out)
        _keep_apart(files, Path(out))
    plan = _Plan(files, {}, out)
    found = {}
    for entry, result in plan.run(as_engine(model), settings or RelaxSettings(), progress):
        found[entry] = result
        if on_done:
            on_done(entry.name, result)
    report = RelaxReport()
    for entry in plan.entries:
        if found[entry]["error"]:
            report.failures.append((entry.name, found[entry]["error"]))
        else:
            report.results.append((entry.name, found[entry]))
    return report


def relax_folder(
    paths: Paths,
    out: str | Path,
    model: Model = None,
    settings: RelaxSettings | None = None,
    *,
    format: str = "cif",
    symmetrize: bool = False,
    on_done: OnDone | None = None,
    progress: bool = True,
) -> FolderReport:
    """Relax every crystal in files, folders or globs into the folder `out`; each is written when it is done.

    A crystal of a.cif goes to out/a.cif (or .extxyz, by `format`; what is not periodic in three directions
    always to .extxyz), of b.extxyz@3 to out/b@3.cif, of a second a.vasp to out/a_2.cif, as where there was an
    out/a.cif before. A line of out/results.jsonl says what came of it; out/results.csv is the same as a
    table, made at the end. Cells and atoms are written as they stand; with symmetrize CIFs show the space
    group found at the settings' symprec, in its conventional cell.

    The same call goes on where it was stopped: a crystal is done if its file has the content that it had and
    it did not fail. Nothing is half-written. Settings, kept in out/settings.json, that differ from those of
    the folder's results raise InputError, as do a `format` other than "cif" and "extxyz", inputs in `out`
    and a results.jsonl or results.csv there that is somebody else's.
    """
    if format not in FORMATS:
        raise InputError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
    folder, files = Path(out), _files(paths)
    _keep_apart(files, folder)
    _check_ours(folder)
    engine, chosen, journal = as_engine(model), settings or RelaxSettings(), Journal(folder, ROWS)
    made_with = {"model": _identity(engine), **asdict(chosen), "format": format, "symmetrize": symmetrize}
    before = journal.open(made_with)
    rows = {row["name"]: row for row in before}
    own = {row["name"]: row["structure"] for row in before if "structure" in row}
    symprec = chosen.tolerance if symmetrize else None
    plan, report = _Plan(files, {name: row for name, row in rows.items() if not row["error"]}), FolderReport()
    try:
        for entry, result in plan.run(engine, chosen, progress):
            row: Row = {"name": entry.name, "digest": entry.digest, "frames": entry.frames}
            if not result["error"]:
                row["structure"] = _free_name(entry, result["final_structure"], own, folder, format)
                own[entry.name] = row["structure"]
                file = folder / row["structure"]
                report.notes += write_structures(labelled(entry.name, result, engine), file, symprec)
            row |= _figures(result)
            journal.append([row])
            rows[entry.name] = row
            if on_done:
                on_done(entry.name, result)
    finally:
        report.rows = [rows[entry.name] for entry in plan.entries if entry.name in rows]
        report.skipped = plan.skipped
        _write_table(folder / TABLE, rows.values())
    return report


def labelled(name: str, result: Relaxation[Any], model: Predictor | Calculator) -> Any:
    """A copy of the final structure that says where it came from, in its `properties` (Atoms: `info`)."""
    final = result["final_structure"].copy()
    made = {"file": name, "energy": result["energy"], "converged": result["converged"]}
    made["model"] = _identity(model).split()[0]
    (final.info if isinstance(final, Atoms) else final.properties).update(made)
    return final


# --- what is to do ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Entry:
    """One crystal of a file: its name, the file and its digest, and how many crystals the file holds."""

    name: str
    file: Path
    digest: str = ""
    frames: int = 1


@dataclass(frozen=True)
class _Source:
    """A file to read, or a path that means none, and why."""

    file: Path
    error: FileReadError | None = None


def _files(paths: Paths) -> list[_Source]:
    found: list[_Source] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        try:
            found += map(_Source, expand(path))
        except FileReadError as error:
            found.append(_Source(Path(path), error))
    return found


def _keep_apart(sources: Sequence[_Source], out: Path) -> None:
    """InputError where results would replace an input, or be inputs when the same call goes on."""
    place = out.resolve()
    for file in (source.file for source in sources if not source.error):
        if place in (file.resolve(), file.resolve().parent, file.parent.resolve()):
            raise InputError(
                f"the results would go to {out}, where the input {file} is; choose another place"
            )


class _Plan:
    """The crystals of files, read when there is room for them; `entries` are those met so far, in order.

    out: a file that must be able to hold what is relaxed.
    """

    def __init__(
        self, sources: Sequence[_Source], done: Mapping[str, Row], out: str | Path | None = None
    ) -> None:
        self.sources, self.done, self.out = sources, done, out
        self.entries: list[_Entry] = []
        self.skipped = 0
        self._running: dict[int, tuple[_Entry, Structure | Atoms]] = {}
        self._unread: list[tuple[_Entry, Exception]] = []

    def run(
        self, engine: Predictor | Calculator, settings: RelaxSettings, progress: bool
    ) -> Iterator[tuple[_Entry, Relaxation[Any]]]:
        """Yield the outcome of each crystal that is not done yet."""
        with ProgressBar(progress, "relaxing") as bar:
            for place, outcome in relax_each(self._stream(bar), engine, settings):
                yield from self._failures()
                entry, item = self._running.pop(place)
                bar.advance(1)
                yield entry, failed(item, outcome) if isinstance(outcome, Exception) else outcome
            yield from self._failures()

    def _failures(self) -> Iterator[tuple[_Entry, Relaxation[Any]]]:
        while self._unread:
            entry, error = self._unread.pop(0)
            yield entry, failed(Atoms(), error)

    def _stream(self, bar: ProgressBar) -> Iterator[Structure | Atoms]:
        place = 0
        for source in self.sources:
            try:
                if source.error:
                    raise source.error
                entries, items = self._open(source.file)
            except (FileReadError, OSError) as error:
                self._cannot_read(source.file, error)
                continue
            self.entries += entries
            bar.add(len(items))
            for entry, item in items:
                self._running[place] = (entry, item)
                place += 1
                yield item

    def _open(self, file: Path) -> tuple[list[_Entry], list[tuple[_Entry, Structure | Atoms]]]:
        """All entries of a file, and those to do with their crystals; a file that is done is not parsed."""
        digest = _digest(file) if file.is_file() else ""
        first = self.done.get(str(file)) or self.done.get(f"{file}@0")
        if first and first["digest"] == digest:
            entries = _entries(file, digest, first["frames"])
            if all(self._is_done(entry) for entry in entries):
                self.skipped += len(entries)
                return entries, []
        crystals: list[Any] = list(parse(file))
        entries = _entries(file, digest, len(crystals))
        pairs = list(zip(entries, crystals, strict=True))
        todo = [(entry, crystal) for entry, crystal in pairs if not self._is_done(entry)]
        self.skipped += len(entries) - len(todo)
        return entries, [pair for pair in todo if self._fits(*pair)]

    def _fits(self, entry: _Entry, crystal: Structure | Atoms) -> bool:
        if self.out is not None:
            try:
                check_fits(crystal, self.out)
            except InputError as error:
                self._unread.append((entry, error))
                return False
        return True

    def _is_done(self, entry: _Entry) -> bool:
        row = self.done.get(entry.name)
        return row is not None and row["digest"] == entry.digest

    def _cannot_read(self, file: Path, error: Exception) -> None:
        known = error if isinstance(error, FileReadError) else FileReadError(f"{file}: {error}")
        self.entries.append(_Entry(str(file), file))
        self._unread.append((self.entries[-1], known))


def _entries(file: Path, digest: str, frames: int) -> list[_Entry]:
    names = [str(file)] if frames == 1 else [f"{file}@{k}" for k in range(frames)]
    return [_Entry(name, file, digest, frames) for name in names]


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


# --- what is written --------------------------------------------------------------------------------------
def _identity(engine: Predictor | Calculator) -> str:
    """What tells models apart: the name and a digest of the weights, or a calculator's class."""
    model = getattr(engine, "model", None)
    if isinstance(model, CrystalModel):
        return f"{model.card.get('name') or 'custom'} {fingerprint(model)} {next(model.parameters()).dtype}"
    return f"{type(engine).__module__}.{type(engine).__qualname__}"


def _check_ours(folder: Path) -> None:
    """InputError where a journal or table without settings, so of somebody else's, would be overwritten."""
    for name in (ROWS, TABLE):
        if (folder / name).exists() and not (folder / "settings.json").exists():
            raise InputError(
                f"{folder / name} is not of a relaxation, for there is no settings.json beside it; "
                "choose another output folder"
            )


def _free_name(
    entry: _Entry, final: Structure | Atoms, own: Mapping[str, str], folder: Path, format: str
) -> str:
    """Stem of the input (the whole name of POSCARs), numbered where it is another crystal's or a file's.

    own: the file of each crystal of the journal, by its name, which it keeps when it is done again.
    """
    flat = isinstance(final, Atoms) and not (final.pbc.all() and final.cell.rank == 3)
    ending = "extxyz" if flat else format
    former = own.get(entry.name, "")
    if former.endswith(f".{ending}"):
        return former
    name, taken = stem(entry.file) + entry.name.removeprefix(str(entry.file)), set(own.values())
    names = (f"{name}{'' if k == 1 else f'_{k}'}.{ending}" for k in count(1))
    return next(name for name in names if name not in taken and not (folder / name).exists())


def _figures(result: Relaxation[Any]) -> Row:
    final = result["final_structure"]
    figures: Row = {key: result[key] for key in _FIGURES if key in result}  # type: ignore[literal-required]
    if result["error"]:
        return {"error": result["error"]}
    n = len(final)
    formula = final.get_chemical_formula("hill") if isinstance(final, Atoms) else final.composition.formula
    return {
        "formula": formula.replace(" ", ""),
        "n_atoms": n,
        "energy_per_atom": result["energy"] / n,
    } | figures


def _write_table(file: Path, rows: Iterable[Row]) -> None:
    with replacing(file) as partial, partial.open("w", newline="") as target:
        table = csv.DictWriter(target, _COLUMNS, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
