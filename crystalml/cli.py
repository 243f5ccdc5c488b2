"""The `crystalml` command. Heavy imports wait inside the commands, so that --help is instant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crystalml import __version__
from crystalml.cli_check import check
from crystalml.cli_data import data
from crystalml.cli_evaluate import judge
from crystalml.cli_featurize import features, measures
from crystalml.cli_generate import generation
from crystalml.cli_lab import benchmark, lab
from crystalml.cli_parts import Device, FriendlyGroup, Seed, examples
from crystalml.cli_property import properties
from crystalml.errors import InputError
from crystalml.memory import keep_memory

if TYPE_CHECKING:
    from crystalml.relax import Relaxation


app = typer.Typer(
    cls=FriendlyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    help="Generate, relax and measure crystals with diffusion models. "
    "Start with [bold]crystalml quickstart[/].",
)

app.add_typer(data)  # without a name: its commands stand beside those below
app.add_typer(lab)
app.add_typer(check)
app.add_typer(judge)
app.add_typer(generation)
app.add_typer(properties)
app.add_typer(features)
benchmark.add_typer(measures)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"crystalml {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    keep_memory()
    os.environ.setdefault("SPGLIB_WARNING", "OFF")  # pages of tolerances it tried in vain; errors still come


@app.command(
    epilog=examples("crystalml quickstart", "crystalml quickstart --out tour --samples 20 --steps 200")
)
def quickstart(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for CIFs and the picture.")] = Path(
        "crystalml-quickstart"
    ),
    samples: Annotated[int, typer.Option(min=0, help="Crystals of CsV3Sb5 to draw.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps; the recipe's own is 1000.")] = 100,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Relax a rattled crystal and sample CsV3Sb5, in under a minute on two CPU cores."""
    from crystalml.quickstart import quickstart as run

    run(out, samples, steps, seed, device)


@app.command(
    epilog=examples(
        "crystalml relax *.cif",
        "crystalml relax candidates/ -o out/ --fmax 0.02    (started again, it goes on)",
        "crystalml relax perovskites/ -o out/ --fix-symmetry --symmetrize",
        "crystalml relax slabs.extxyz -o relaxed.extxyz --no-cell --optimizer fire",
    )
)
def relax(
    files: Annotated[list[str], typer.Argument(help="Structure files, folders or globs.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder; or one file: .extxyz, .cif, .cif.zip or .jsonl.")
    ] = Path("relaxed"),
    fmax: Annotated[float, typer.Option(help="Stop when no force exceeds this (eV/A).")] = 0.05,
    max_steps: Annotated[int, typer.Option(min=0, help="Give up after this many steps.")] = 500,
    cell: Annotated[bool, typer.Option(help="Relax the cell, too (never of slabs and molecules).")] = True,
    fix_symmetry: Annotated[bool, typer.Option("--fix-symmetry", help="Keep the space group.")] = False,
    optimizer: Annotated[str, typer.Option(help="lbfgs or fire.")] = "lbfgs",
    symprec: Annotated[
        float | None, typer.Option(help="Tolerance of space groups (A); default: 0.1, or 0.01 if kept.")
    ] = None,
    format: Annotated[str, typer.Option(help="Of the files in the folder: cif or extxyz.")] = "cif",
    symmetrize: Annotated[
        bool, typer.Option("--symmetrize", help="CIFs in their space group instead of P1 as they stand.")
    ] = False,
    model: Annotated[str, typer.Option(help="Shipped name, path or hf:// address.")] = "dao-p",
    dtype: Annotated[str, typer.Option(help="float32, or float64 for fmax below 0.0001.")] = "float32",
    compile: Annotated[
        bool, typer.Option("--compile", help="Twice as fast; the first time, minutes later.")
    ] = False,
    device: Device = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No bar, no line for each crystal.")] = False,
) -> None:
    """Relax crystals from files, all in one batch; bad ones are reported and the others go on.

    A folder gets each crystal as soon as it is done, results.jsonl and results.csv; the same command started
    again skips what is done. Exit code 1 if any failed.
    """
    from crystalml.relaxation.settings import RelaxSettings
    from crystalml.write import FORMATS, check_format, write_structures

    if out.suffix and not out.is_dir():
        check_format(out)
    settings = RelaxSettings(fmax, max_steps, cell, fix_symmetry, optimizer, symprec)
    if dtype not in ("float32", "float64"):
        raise InputError(f"--dtype must be float32 or float64, not {dtype!r}.")
    from crystalml.calculators.ase import DaoCalculator
    from crystalml.relax_files import labelled, relax_files, relax_folder

    calculator = DaoCalculator(model, device=device, dtype=dtype, compile=compile)
    on_done = _report_line if not quiet else None
    if out.name.lower().endswith(FORMATS) and not out.is_dir():
        report = relax_files(files, calculator, settings, out=out, on_done=on_done, progress=not quiet)
        final = [labelled(name, result, calculator) for name, result in report.results]
        failures, notes = report.failures, []
        if final:
            notes = write_structures(final, out, settings.tolerance if symmetrize else None)
        typer.echo(f"{len(final)} relaxed structures written to {out}")
    else:
        options: Any = {"format": format, "symmetrize": symmetrize, "progress": not quiet}
        whole = relax_folder(files, out, calculator, settings, on_done=on_done, **options)
        failures, notes = whole.failures, whole.notes
        good = len(whole.rows) - len(failures)
        typer.echo(f"{good} relaxed structures in {out}, {whole.skipped} of them from before")
    _report_failures(failures, notes)


def _report_failures(failures: list[tuple[str, str]], notes: list[str]) -> None:
    for note in notes:
        typer.secho(note, fg=typer.colors.YELLOW, err=True)
    if failures:
        typer.secho(f"{len(failures)} could not be read or relaxed:", fg=typer.colors.RED, err=True)
        for name, reason in failures:
            typer.echo(f"  {name}: {reason.removeprefix(f'{name}: ')}", err=True)
        raise typer.Exit(1)


def _report_line(name: str, result: Relaxation[Any]) -> None:
    if result["error"]:
        return  # listed at the end
    groups = f", {result['spacegroup_before']} -> {result['spacegroup_after']}"
    typer.echo(
        f"{name}: {result['energy']:.4f} eV, fmax {result['fmax']:.3f} eV/A, {result['n_steps']} steps"
        f"{groups if result['spacegroup_after'] else ''}{'' if result['converged'] else '  NOT CONVERGED'}"
    )


@app.command(epilog=examples("crystalml models", "crystalml models dao-p"))
def models(name: Annotated[str | None, typer.Argument(help="Show this model's card.")] = None) -> None:
    """List the shipped models, or show the card of one."""
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.table import Table

    from crystalml.weights.registry import list_models, model_info, render_card

    console = Console()
    if name:
        console.print(Markdown(render_card(model_info(name))))
        return
    table = Table("name", "recipe", "parameters", "file (MiB)", "energy", "description")
    for info in list_models():
        recipe = f"{info.recipe} {info.size}".strip()
        units = info.energy["units"] if info.energy else ""
        size = f"{info.bytes / 2**20:.1f}"
        table.add_row(info.name, recipe, f"{info.parameters:,}", size, units, info.description)
    console.print(table if table.rows else "No weights are shipped with this installation.")


def main() -> None:
    """Entry point of the `crystalml` script."""
    app()


if __name__ == "__main__":
    main()
