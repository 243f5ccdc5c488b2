"""What a check found and what a whole run found: plain data, a table, JSON, Markdown."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from crystalml.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

Status = Literal["pass", "fail", "refused", "skip", "error"]
BAD: tuple[Status, ...] = ("fail", "error")
_COLOURS = {"pass": "green", "fail": "red", "refused": "yellow", "skip": "dim", "error": "red"}


@dataclass(frozen=True)
class Result:
    """One law: `measured` should not exceed `tolerance`, both in `unit`; NaN never passes.

    status: "pass", "fail"; "refused" (the calculator says clearly that it does not serve this case: no
    failure); "skip" (the case does not apply); "error" (it broke down with an exception that names nothing).
    """

    name: str
    status: Status
    measured: float | None = None
    tolerance: float | None = None
    unit: str = ""
    message: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


def judge(
    name: str, measured: float, tolerance: float, unit: str = "", message: str = "", **details: object
) -> Result:
    """Pass if measured <= tolerance, which NaN is not."""
    measured, tolerance = float(measured), float(tolerance)
    return Result(
        name, "pass" if measured <= tolerance else "fail", measured, tolerance, unit, message, details
    )


def worst(*results: Result) -> Result:
    """The first that does not pass, else the first."""
    return next((result for result in results if result.status != "pass"), results[0])


@dataclass(frozen=True, repr=False)
class Report:
    """All results of one calculator, with what is needed to read them: elements, precision, versions."""

    calculator: str
    results: tuple[Result, ...]
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """No law is broken and nothing broke down."""
        return not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that failed or ended in an error."""
        return tuple(result.name for result in self.results if result.status in BAD)

    @property
    def counts(self) -> dict[str, int]:
        """How many results have each status."""
        return dict(Counter(result.status for result in self.results))

    def __getitem__(self, name: str) -> Result:
        return next(result for result in self.results if result.name == name)

    def __repr__(self) -> str:
        bad = [result for result in self.results if result.status in BAD]
        lines = [f"  {result.name}: {result.status}, {_evidence(result)}" for result in bad]
        return "\n".join([f"{self.calculator}: {_summary(self.counts)}", *lines])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; numbers that are not finite become strings."""
        head = {"calculator": self.calculator, **self.info, "counts": self.counts}
        return _plain({**head, "results": [asdict(result) for result in self.results]})

    def to_markdown(self) -> str:
        """A table, to be put into documents."""
        rows = ["| check | status | measured | tolerance | |", "|---|---|---|---|---|"]
        for result in self.results:
            status = f"**{result.status}**" if result.status in BAD else result.status
            message = " ".join(result.message.split()).replace("|", "\\|")
            rows.append(f"| {result.name} | {status} | {' | '.join(_numbers(result))} | {message} |")
        head = "; ".join(f"{key} {value}" for key, value in self.info.items() if not isinstance(value, dict))
        return "\n".join([f"**{self.calculator}**: {_summary(self.counts)}.", "", head, "", *rows, ""])

    def table(self) -> Table:
        """For the terminal: with the message where there is something to say."""
        from rich.box import SIMPLE
        from rich.table import Table
        from rich.text import Text

        table = Table("check", "status", "measured", "limit", "unit", "", title=self.calculator, box=SIMPLE)
        for column in table.columns[:5]:
            column.no_wrap = True
        for result in self.results:
            status = Text(result.status, style=_COLOURS[result.status])
            figures = [_number(result.measured), _number(result.tolerance), result.unit]
            message = "" if result.status == "pass" else " ".join(result.message.split())
            table.add_row(result.name, status, *figures, Text(message))
        table.caption = _summary(self.counts)
        return table

    def save(self, path: Path) -> None:
        """Write .json or .md."""
        check_suffix(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = self.to_markdown() if path.suffix == ".md" else json.dumps(self.to_dict(), indent=1) + "\n"
        path.write_text(text)


def check_suffix(path: Path) -> None:
    """Reports are .json or .md; said before the work, not after it."""
    if path.suffix not in (".json", ".md"):
        raise InputError(f"a report is written as .json or .md, not as {path.name!r}")


def _summary(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[status]} {status}" for status in _COLOURS if counts.get(status))


def _evidence(result: Result) -> str:
    measured, tolerance = _numbers(result)
    figures = f"{measured} > {tolerance}" if result.measured is not None else ""
    return "; ".join(part for part in (figures, result.message) if part)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _numbers(result: Result) -> tuple[str, str]:
    unit = f" {result.unit}" if result.unit else ""
    show = ["" if x is None else _number(x) + unit for x in (result.measured, result.tolerance)]
    return show[0], show[1]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
