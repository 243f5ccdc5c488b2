"""The `crystalml` command. Heavy imports wait inside the commands, so that --help is instant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from crystalml import __version__
from crystalml.errors import CrystalMLError, InputError

if TYPE_CHECKING:
    from crystalml.relax import Relaxation


class FriendlyGroup(TyperGroup):
    """Errors raised on purpose become one line and exit code 2; bugs keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CrystalMLError as error:
            typer.secho(f"Error: {error}", fg=typer.colors.RED, err=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=FriendlyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    help="Generate, relax and measure crystals with diffusion models. "
    "Start with [bold]crystalml quickstart[/].",
)

benchmark = typer.Typer(cls=FriendlyGroup, no_args_is_help=True, help="Measure models.")
app.add_typer(benchmark, name="benchmark")

Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; default: a GPU if there is one.")]
Seed = Annotated[int, typer.Option(help="Same seed, same result.")]


def _examples(*lines: str) -> str:
    return "[bold]Examples[/]\n\n" + "\n\n".join(f"  {line}" for line in lines)


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
    epilog=_examples("crystalml quickstart", "crystalml quickstart --out tour --samples 20 --steps 200")
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
    epilog=_examples(
        "crystalml generate CsV3Sb5 -n 20 -o out.extxyz",
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
    guidance: Annotated[float, typer.Option(min=0, help="Strength of the pull to low energy.")] = 0.0,
    max_atoms: Annotated[int | None, typer.Option(min=1, help="Largest cell; default: training's.")] = None,
    model: Annotated[str, typer.Option(help="Shipped name, path or hf:// address.")] = "dao-g",
    energy_model: Annotated[str, typer.Option(help="Model for --guidance.")] = "dao-p",
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
    epilog=_examples(
        "crystalml relax *.cif", "crystalml relax POSCAR -o relaxed.extxyz --fmax 0.01 --no-cell"
    )
)
def relax(
    files: Annotated[list[str], typer.Argument(help="Structure files, folders or globs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File: .extxyz, .cif, .cif.zip or .jsonl.")] = Path(
        "relaxed.cif.zip"
    ),
    fmax: Annotated[float, typer.Option(help="Stop when no force exceeds this (eV/A).")] = 0.05,
    steps: Annotated[int, typer.Option(min=0, help="Give up after this many steps.")] = 500,
    cell: Annotated[bool, typer.Option(help="Relax the cell, too.")] = True,
    optimizer: Annotated[str, typer.Option(help="FIRE or BFGS.")] = "FIRE",
    model: Annotated[str, typer.Option(help="Shipped name, path or hf:// address.")] = "dao-p",
    device: Device = None,
) -> None:
    """Relax crystals from files; bad files are reported and the others go on (exit code 1 if any failed)."""
    from crystalml.write import check_format, write_structures

    check_format(out)
    from crystalml.calculators.ase import DaoCalculator
    from crystalml.relax import relax_files

    def show(name: str, result: Relaxation | None, reason: str) -> None:
        if result is None:
            typer.secho(f"{name}: {reason}", fg=typer.colors.RED, err=True)
            return
        end = "" if result["converged"] else "  NOT CONVERGED"
        typer.echo(
            f"{name}: {result['energy']:.4f} eV, fmax {result['fmax']:.3f} eV/A, {result['n_steps']} steps, "
            f"{result['spacegroup_before']} -> {result['spacegroup_after']}{end}"
        )

    calculator = DaoCalculator(model, device=device)
    report = relax_files(files, calculator, fmax, steps, cell, optimizer, on_done=show)
    final = []
    for name, result in report.results:
        structure = result["final_structure"]
        energy, converged = result["energy"], result["converged"]
        structure.properties.update(file=name, energy=energy, converged=converged, model=model)
        final.append(structure)
    if final:
        write_structures(final, out)
        typer.echo(f"{len(final)} relaxed structures written to {out}")
    if report.failures:
        typer.secho(f"{len(report.failures)} could not be read or relaxed:", fg=typer.colors.RED, err=True)
        for name, reason in report.failures:
            typer.echo(f"  {name}: {reason}", err=True)
        raise typer.Exit(1)


@app.command(epilog=_examples("crystalml models", "crystalml models dao-p"))
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


@app.command(
    epilog=_examples(
        "crystalml pack ../shared/data -o train.safetensors --max-atoms 20",
        "crystalml pack ../shared/data -o val.safetensors --split val --frames 5000",
    )
)
def pack(
    folder: Annotated[Path, typer.Argument(help="A CrysDB folder (crysdb/*.parquet, frames/*.parquet).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The packed file, .safetensors.")],
    split: Annotated[str, typer.Option(help="train or val.")] = "train",
    max_atoms: Annotated[int | None, typer.Option(min=1, help="Leave out larger cells.")] = None,
    frames: Annotated[int, typer.Option(min=0, help="Add this many rattled or decorated frames.")] = 0,
    seed: Seed = 0,
) -> None:
    """Pack a CrysDB folder into one small file to train on."""
    from crystalml.datasets.packing import training_set

    data = training_set(folder, split, max_atoms, frames, seed)
    data.save(out)
    labels = ", ".join(f"{name} ({int(value.isfinite().sum())})" for name, value in data.labels.items())
    typer.echo(f"{len(data)} crystals, {len(data.numbers)} atoms written to {out}; labels: {labels}")


@app.command(
    epilog=_examples(
        "crystalml train dao-g --data train.safetensors --val val.safetensors --minutes 60 -o runs/dao-g",
        "crystalml train dao-p --data train.safetensors --size base --minutes 600 --device cuda -o runs/p",
        "crystalml train dao-g --data mine.safetensors --init model.safetensors --lr 1e-4 -o runs/tuned",
        "torchrun --nproc-per-node 4 -m crystalml.cli train dao-g --data train.safetensors -o runs/four",
    )
)
def train(
    recipe: Annotated[str, typer.Argument(help="dao-g, dao-p or diffcsp.")],
    data: Annotated[Path, typer.Option(help="Packed training set, see `crystalml pack`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    val: Annotated[Path | None, typer.Option(help="Packed validation set.")] = None,
    size: Annotated[str, typer.Option(help="tiny, small, base or paper.")] = "small",
    minutes: Annotated[
        float | None, typer.Option(help="Train this long [default: 10 if no --steps].")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Or end after this many steps.")] = None,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    pairs: Annotated[int, typer.Option(min=1, help="Atom pairs a batch, padded: more needs memory.")] = 8_000,
    max_atoms: Annotated[int | None, typer.Option(min=1, help="Leave out larger cells.")] = None,
    init: Annotated[Path | None, typer.Option(help="Start from these weights (fine-tuning).")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out, if there is one.")] = True,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Train a model; stop it at any moment and the same command goes on."""
    import torch

    from crystalml.datasets.packed import PackedDataset
    from crystalml.train import TrainConfig, distributed
    from crystalml.train import train as run
    from crystalml.training.fit import FitConfig

    if not resume and (out / "state.safetensors").exists():
        raise InputError(f"{out} holds a run and --no-resume was given: choose another --out or delete it.")
    length = 10.0 if minutes is None and steps is None else minutes
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    sets = [PackedDataset.load(path) if path else None for path in (data, val)]
    with distributed(place) as place:
        config = TrainConfig(
            recipe=recipe,
            out=out,
            size=size,  # type: ignore[arg-type]  # checked by the recipe, which lists the sizes
            fit=FitConfig(steps=steps, minutes=length, lr=lr, seed=seed),
            pairs=pairs,
            max_atoms=max_atoms,
            init=init,
            device=place,
        )
        assert sets[0] is not None
        for log in run(config, sets[0], sets[1]):
            share, progress = log.run.progress.share(config.fit), log.run.progress
            losses = {**log.losses, **{f"val {name}": value for name, value in log.validation.items()}}
            text = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
            typer.echo(f"{share:4.0%}  step {progress.step}  {progress.seconds / 60:.1f} min  {text}")
    typer.echo(f"Model: {out / 'model.safetensors'}")


@benchmark.command(
    epilog=_examples(
        "crystalml benchmark csp --test mp_20_test.parquet --shots 1,20 --n 500 --seed 0",
        "crystalml benchmark csp --test mp_20_test.parquet --model runs/dao-g/model.safetensors --steps 200",
    )
)
def csp(
    test: Annotated[Path, typer.Option(help="Parquet file of target crystals.")],
    model: Annotated[str, typer.Option(help="Shipped name, path or hf:// address.")] = "dao-g",
    shots: Annotated[str, typer.Option(help="Samples a target, a list such as 1,20.")] = "1,20",
    n: Annotated[int | None, typer.Option("--n", "-n", min=1, help="Targets [default: all].")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps [default: the recipe's].")] = None,
    guidance: Annotated[float, typer.Option(min=0, help="Strength of the pull to low energy.")] = 0.0,
    order: Annotated[str, typer.Option(help="Predictor-corrector order: code or paper.")] = "code",
    gated: Annotated[bool, typer.Option(help="Also report rates behind the validity gate.")] = True,
    processes: Annotated[int, typer.Option(min=1, help="Processes for matching.")] = 1,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of samples and results.")] = Path(
        "benchmark-csp"
    ),
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Match rate and RMSE of crystal structure prediction; stopped, it goes on where it was."""
    from crystalml.benchmarks.csp import run

    try:
        counts = [int(part) for part in shots.split(",")]
    except ValueError as error:
        raise InputError(f"--shots {shots!r} is no list of whole numbers such as 1,20.") from error
    if order not in ("code", "paper"):
        raise InputError(f"--order must be code or paper, not {order!r}.")
    run(
        test,
        model,
        shots=counts,
        n=n,
        seed=seed,
        steps=steps,
        guidance=guidance,
        order=order,  # type: ignore[arg-type]
        gated=gated,
        out=out,
        device=device,
        processes=processes,
    )


@benchmark.command(epilog=_examples("crystalml benchmark energy --test mp_20_test.parquet --model dao-p"))
def energy(
    test: Annotated[Path, typer.Option(help="Parquet file with formation energies.")],
    model: Annotated[str, typer.Option(help="Shipped name, path or hf:// address.")] = "dao-p",
    n: Annotated[int | None, typer.Option("--n", "-n", min=1, help="Crystals [default: all].")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file of the result.")] = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Mean absolute error of the predicted energy per atom."""
    from crystalml.benchmarks.energy import run

    run(test, model, n=n, seed=seed, out=out, device=device)


@benchmark.command(epilog=_examples("crystalml benchmark speed", "crystalml benchmark speed --crystals 256"))
def speed(
    test: Annotated[Path | None, typer.Option(help="Parquet file of crystals [default: random]")] = None,
    crystals: Annotated[int, typer.Option(min=1, help="How many.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps to time.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; the fastest counts.")] = 3,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file of the result.")] = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Structures per second of sampling and of single points, beside a plain edge-by-edge reference."""
    from crystalml.benchmarks.speed import run

    run(crystals=crystals, steps=steps, repeats=repeats, test=test, seed=seed, out=out, device=device)


def main() -> None:
    """Entry point of the `crystalml` script."""
    app()


if __name__ == "__main__":
    main()
