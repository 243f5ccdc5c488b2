"""The verdict as one page that any browser opens without a network: figures, pictures, a gallery, a table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from crystalml.evaluation.figures import charts, crystal
from crystalml.evaluation.result import Evaluation, plain_data
from crystalml.replacing import replacing

HEADLINES = (
    "valid", "valid_structure", "match_rate_1", "match_rate_20", "unique", "novel", "stable", "sun",
    "density_wasserstein", "energy_wasserstein", "frechet", "coverage_recall",
)  # fmt: skip
PAGE = Path(__file__).with_name("report.html")
TILES, GALLERY, ROWS = 6, 12, 200
COLUMNS = (
    "name", "formula", "atoms", "spacegroup", "density", "energy_per_atom", "energy_above_hull",
    "valid_structure", "novel", "sun", "matched", "rms", "unreadable",
)  # fmt: skip


def write_report(evaluation: Evaluation, path: str | Path) -> None:
    """Write the page; it appears under its name only when complete."""
    page = render(evaluation)
    with replacing(path) as file:
        file.write_text(page, encoding="utf-8")


def render(evaluation: Evaluation) -> str:
    """The page as text: no script, no address but data."""
    settings = evaluation.settings
    counts = f"{settings['samples']:,} samples"
    if settings.get("reference_crystals"):
        counts += f" against {settings['reference_crystals']:,} reference crystals"
    pictures = "".join(
        f"<figure><figcaption>{escape(caption)}</figcaption>{picture}</figure>"
        for caption, picture in charts(evaluation.table, evaluation.reference_table, settings.get("stable"))
    )
    made = json.dumps(plain_data(settings), indent=1)
    parts = [
        "<header><h1>How good are these crystals?</h1>",
        f"<p>{escape(counts)} · {escape(str(settings['environment']['date'])[:10])}</p></header>",
        f'<section class="tiles">{_tiles(evaluation)}</section>',
        f"<section><h2>Figures</h2>{_metrics(evaluation)}</section>",
        f'<section><h2>Distributions</h2><div class="charts">{pictures}</div></section>',
        _gallery(evaluation),
        f"<section><h2>Samples</h2>{_table(evaluation)}</section>",
        f"<section><h2>How this was made</h2><pre>{escape(made)}</pre></section>",
    ]
    return PAGE.read_text(encoding="utf-8").replace("BODY", "\n".join(parts))


def _tiles(evaluation: Evaluation) -> str:
    chosen = [evaluation.metrics[key] for key in HEADLINES if key in evaluation.metrics][:TILES]
    return "".join(
        f"<div><b>{metric.text()}<small> {escape(metric.unit)}</small></b>"
        f"<span>{escape(metric.name)}</span><i>{escape(metric.range_text())}</i></div>"
        for metric in chosen
    )


def _metrics(evaluation: Evaluation) -> str:
    rows = [
        (
            metric.name,
            metric.text(),
            metric.range_text(),
            "" if metric.floor is None else metric.text(metric.floor),
            metric.unit,
            f"{metric.count:,}",
            metric.note,
        )
        for metric in evaluation.metrics.values()
    ]
    head = ("", "value", "95 % interval", "floor", "unit", "n", "what it is")
    caption = (
        "Intervals are 95 % bootstrap intervals. Distances between finite samples are biased upwards; their "
        "intervals are not, and may lie below the value. The floor of a distance is that between two random "
        "halves of the reference: what a perfect generator would score with half as many samples."
    )
    return _html_table(head, rows, "whole") + f'<p class="note">{caption}</p>'


def _gallery(evaluation: Evaluation) -> str:
    places = _chosen(evaluation)
    if not places:
        return ""
    table = evaluation.table
    cards = []
    for i in places:
        structure = evaluation.structures[i]
        assert structure is not None
        lines = [f"{table['formula'][i]}", f"space group {table['spacegroup'][i]}"]
        if (above := _cell(table, "energy_above_hull", i)) != "":
            lines.append(f"{above} eV/atom above hull")
        if table.get("sun", [False] * (i + 1))[i]:
            lines.append("stable, unique, novel")
        text = "<br>".join(escape(line) for line in lines)
        image = f'<img alt="{escape(lines[0])}" src="{crystal(structure)}">'
        cards.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")
    what = "the most stable novel ones first" if "sun" in table else "the first valid ones"
    inside = f'<p class="note">{what}</p><div class="gallery">{"".join(cards)}</div>'
    return f"<section><h2>Gallery</h2>{inside}</section>"


def _chosen(evaluation: Evaluation) -> list[int]:
    """Places of the samples to draw: valid ones, one a formula, S.U.N. first, then by energy above hull."""
    table = evaluation.table
    valid = [i for i, sound in enumerate(table["valid_structure"]) if sound]

    def rank(i: int) -> tuple[bool, float, int]:
        above = table.get("energy_above_hull", [None] * (i + 1))[i]
        known = above is not None and math.isfinite(above)
        return (not table.get("sun", [False] * (i + 1))[i], above if known else math.inf, i)

    chosen: dict[str, int] = {}
    for i in sorted(valid, key=rank):
        chosen.setdefault(table["formula"][i], i)
    return list(chosen.values())[:GALLERY]


def _table(evaluation: Evaluation) -> str:
    names = [
        name for name in COLUMNS if any(value not in (None, "") for value in evaluation.table.get(name, []))
    ]
    total = len(evaluation.table["name"])
    rows = [[_cell(evaluation.table, name, i) for name in names] for i in range(min(total, ROWS))]
    note = (
        f"<p class='note'>The first {ROWS} of {total:,}; samples.csv holds all.</p>" if total > ROWS else ""
    )
    return _html_table([name.replace("_", " ") for name in names], rows) + note


def _cell(table: dict[str, list[Any]], name: str, i: int) -> str:
    value = table[name][i] if name in table else None
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _html_table(head: Iterable[str], rows: Sequence[Sequence[str]], size: str = "scroll") -> str:
    """size "scroll": a window on a long table; "whole": all of it."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="{size}"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
