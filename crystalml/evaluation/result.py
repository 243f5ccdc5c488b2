"""The verdict: metrics with intervals, the table of all samples, and how both were made."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pymatgen.core import Structure

from crystalml.benchmarks.report import show
from crystalml.errors import InputError, UnsupportedError
from crystalml.journal import write_json
from crystalml.metrics.intervals import Interval

if TYPE_CHECKING:
    import pandas

TABLES = (".parquet", ".csv")


@dataclass(frozen=True)
class Metric:
    """One figure. interval: 95 % by bootstrap. floor: the same of the reference's two halves, for distances.

    count: rows it was taken over. note: what exactly it is, in words.
    """

    name: str
    value: float
    unit: str
    count: int
    interval: Interval | None = None
    floor: float | None = None
    note: str = ""

    @property
    def is_rate(self) -> bool:
        return self.unit == "%"

    def text(self, number: float | None = None) -> str:
        """The value (or another number of its kind) as people read it: rates in percent."""
        value = self.value if number is None else number
        if not math.isfinite(value):
            return "-"
        return f"{100 * value:.2f}" if self.is_rate else f"{value:.4g}"

    def range_text(self) -> str:
        if self.interval is None or not all(map(math.isfinite, self.interval)):
            return ""
        return " – ".join(self.text(bound) for bound in self.interval)


@dataclass(frozen=True)
class Evaluation:
    """metrics by key; table: column -> one value a sample; settings: all that the figures depend on.

    structures: the samples as read (None where unreadable). reference_table: such columns of the reference.
    """

    metrics: dict[str, Metric]
    table: dict[str, list[Any]]
    settings: dict[str, Any]
    structures: Sequence[Structure | None] = ()
    reference_table: dict[str, list[Any]] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Metric:
        if key not in self.metrics:
            raise InputError(f"there is no metric {key!r} here; there are {', '.join(self.metrics)}")
        return self.metrics[key]

    def to_dict(self) -> dict[str, Any]:
        """Metrics and settings as plain data; NaN becomes None."""
        return {
            "metrics": {key: plain_data(asdict(metric)) for key, metric in self.metrics.items()},
            "settings": plain_data(self.settings),
        }

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a sample."""
        import pandas

        return pandas.DataFrame(self.table)

    def save_table(self, path: str | Path) -> None:
        """The table of samples as .parquet or .csv."""
        file = Path(path)
        if file.suffix not in TABLES:
            raise InputError(f"cannot tell the format of {str(path)!r}: end it in {' or '.join(TABLES)}")
        frame = self.to_dataframe()
        if file.suffix == ".csv":
            frame.to_csv(file, index=False)
            return
        try:
            frame.to_parquet(file, index=False)
        except ImportError as error:
            raise UnsupportedError(
                'writing parquet needs pyarrow: pip install "crystalml-dao[data]"'
            ) from error

    def save(self, folder: str | Path) -> list[Path]:
        """Write metrics.json, samples.csv (and .parquet where pyarrow is there) and report.html."""
        from crystalml.evaluation.report import write_report

        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        written = [out / name for name in ("metrics.json", "samples.csv", "report.html")]
        write_json(written[0], self.to_dict())
        self.save_table(written[1])
        write_report(self, written[2])
        try:
            self.save_table(out / "samples.parquet")
            written.append(out / "samples.parquet")
        except UnsupportedError:  # the CSV holds the same
            pass
        return written

    def show(self) -> None:
        """Print the metrics as one table."""
        rows = [
            (
                metric.name,
                metric.text(),
                metric.range_text(),
                "" if metric.floor is None else metric.text(metric.floor),
                metric.unit,
                f"{metric.count:,}",
            )
            for metric in self.metrics.values()
        ]
        sizes = f"{self.settings['samples']:,} samples"
        if self.settings.get("reference_crystals"):
            sizes += f" against {self.settings['reference_crystals']:,} crystals"
        notes = [
            f"{key}: {self.settings[key]}"
            for key in ("energy_model", "embedder", "hull")
            if self.settings.get(key)
        ]
        show(sizes, ["", "value", "95 %", "floor", "unit", "n"], rows, "; ".join(notes))


def plain_data(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    try:
        json.dumps(value)
    except TypeError:
        return str(value)
    return value
