"""The `crystalml` command. Heavy imports wait inside the commands, so that --help is instant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crystalml import __version__
from crystalml.cli_check import check
from crystalml.cli_evaluate import judge
from crystalml.cli_featurize import features, measures
from crystalml.cli_lab import benchmark, lab
from crystalml.cli_parts import Device, FriendlyGroup, Seed, examples
from crystalml.cli_property import properties
from crystalml.errors import InputError

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

app.add_typer(lab)  # without a name: its commands stand beside those below
app.add_typer(check)
app.add_typer(judge)
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
    pass


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
        "crystalml generate CsV3Sb5 -n 20 -o out.extxyz",
        "crystalml generate LiFePO4 -n 20 --strategy prototype -o known.cif.zip",
        "crystalml generate NaCl MgO -n 5 --formula-units 1:4 -o out.cif.zip",
        "crystalml generate LiFePO4 -n 8 --formula-units 4 --guidance 1 --seed 7 -o out.jsonl",
    )
)
def generate(
    compositions: Annotated[list[str], typer.Argument(help="Formulas, such as CsV3Sb5.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File: .extxyz, .cif, .cif.zip or .jsonl.")],
    n: Annotated[int, typer.Option("-n", min=0, help="Structures of each formula (and each Z).")] = 1,
    formula_units: Annotated[
        str, typer.Option("--formula-units", "-z", help="Z: 'auto', 4 or 1:4.")
    ] = "auto",
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps; default: the recipe's.")] = None,
    strategy: Annotated[
        str, typer.Option(help="diffusion, prototype (known types only) or auto.")
    ] = "diffusion",
    guidance: Annotated[float, typer.Option(min=0, help="Strength of the pull to low energy.")] = 0.0,
    max_atoms: Annotated[int | None, typer.Option(min=1, help="Largest cell; default: training's.")] = None,
    model: Annotated[str, typer.Option(help="Shipped name, path or hf:// address.")] = "dao-g",
    energy_model: Annotated[str, typer.Option(help="Model for --guidance.")] = "dao-p-diffusion",
    seed: Seed = 0,
    device: Device = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Draw crystal structures of given formulas."""
    from crystalml.write import check_format, write_structures

    check_format(out)
    units = _formula_units(formula_units)
    from crystalml.generate import StructureGenerator  # seconds of imports: mistakes show before

    generator = StructureGenerator(model, energy_model, device)
    found = generator.sample(
        compositions,
        n,
        formula_units=units,
        strategy=strategy,  # type: ignore[arg-type]  # checked by sample, which lists them
        seed=seed,
        guidance=guidance,
        steps=steps,
        max_atoms=max_atoms,
        progress=not quiet,
    )
    flat = [structure for group in found for structure in group]
    for note in write_structures(flat, out):
        typer.secho(note, fg=typer.colors.YELLOW, err=True)
    report = generator.report
    rejected = f", {report.rejected.total()} draws rejected" if report.rejected else ""
    typer.echo(f"{report.returned} of {report.requested} structures written to {out}{rejected}")
    if report.missing:
        raise typer.Exit(1)


def _formula_units(text: str) -> Any:
    """'auto', '4' or '1:4' (both ends included)."""
    if text == "auto":
        return "auto"
    first, colon, last = text.partition(":")
    try:
        return range(int(first), int(last) + 1) if colon else int(first)
    except ValueError as error:
        raise InputError(f"--formula-units {text!r} is not 'auto', a number or a range 1:4.") from error


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

    calculator = DaoCalculator(model, device=device, dtype=dtype)
    on_done = _report_line if not quiet else None
    if out.name.lower().endswith(FORMATS) and not out.is_dir():
        report = relax_files(files, calculator, settings, on_done=on_done, progress=not quiet)
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
            typer.echo(f"  {name}: {reason}", err=True)
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
