"""Commands that learn properties from a table and predict them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crystalml.cli_parts import Device, Seed, examples, numbers
from crystalml.errors import InputError, UnsupportedError
from crystalml.replacing import replacing

if TYPE_CHECKING:
    from pymatgen.core import Structure

properties = typer.Typer()


@properties.command(
    epilog=examples(
        "crystalml finetune data.csv --target band_gap --unit eV -o gap.safetensors",
        "crystalml finetune data.csv --target Tc --method diffusion --encoder diffcsp -o tc.safetensors",
        "crystalml finetune few.csv --target log_k --method gp -o k.safetensors",
        "crystalml finetune measured.csv --target e_form --from computed.safetensors -o better.safetensors",
    )
)
def finetune(
    data: Annotated[Path, typer.Argument(help="CSV: a column `file` of structure files, and the property.")],
    target: Annotated[str, typer.Option(help="Column of the property: numbers, or names of classes.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The model, .safetensors.")],
    method: Annotated[str, typer.Option(help="regression, diffusion, ridge or gp.")] = "regression",
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder", "--from", help="The start: shipped name, path or hf:// address \\[default: dao-p]."
        ),
    ] = None,
    unit: Annotated[str, typer.Option(help="Of the property.")] = "",
    epochs: Annotated[int, typer.Option(min=1, help="At most.")] = 100,
    minutes: Annotated[float | None, typer.Option(help="Train no longer than this.")] = None,
    lr: Annotated[float, typer.Option(help="Learning rate of the head.")] = 1e-3,
    encoder_lr: Annotated[float | None, typer.Option(help="Of the encoder \\[default: the method's]")] = None,
    freeze: Annotated[bool, typer.Option("--freeze", help="Leave the encoder as it is.")] = False,
    seed: Seed = 0,
    device: Device = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Learn a property of crystals from a table, on top of a pretrained encoder."""
    if out.suffix != ".safetensors":
        raise InputError(f"--out {str(out)!r} must end in .safetensors")
    structures, values = _table(data, target)
    from crystalml.property import DEFAULT_ENCODER, PropertyPredictor

    predictor = PropertyPredictor(
        encoder or DEFAULT_ENCODER,
        method,  # type: ignore[arg-type]  # checked by fit, which lists them
        name=target,
        unit=unit,
        epochs=epochs,
        minutes=minutes,
        lr=lr,
        encoder_lr=encoder_lr,
        freeze=freeze,
        seed=seed,
        device=device,
        progress=not quiet,
    )
    predictor.fit(structures, values).save(out)
    training, classes = predictor.model_.card["training"], predictor.classes_.tolist()
    some = ", ".join(classes[:5]) + ", ..." * (len(classes) > 5)
    kind = f"one of {len(classes)} classes ({some})" if classes else "a number"
    typer.echo(
        f"{target} learned from {training['crystals']} crystals as {kind}, "
        f"{training['validation']} watched: {out}"
    )


def _table(path: Path, target: str) -> tuple[list[Structure], Any]:
    """Structures and values of the rows; files are named relative to the table."""
    import pandas as pd

    from crystalml.convert import read_structures
    from crystalml.datasets.labels import read_labels

    if not path.is_file():
        raise InputError(f"no table at {path}")
    rows = pd.read_csv(path)
    for name in ("file", target):
        if name not in rows:
            raise InputError(f"{path} has no column {name!r}; it has {', '.join(map(str, rows.columns))}")
    if (empty := rows[target].isna()).any():
        raise InputError(f"{path}: {target!r} is empty in row {int(empty.argmax()) + 2}; leave such rows out")
    values = read_labels(rows[target], called=f"{path}: {target!r}", first=2)
    structures = []
    for name in rows["file"]:
        found = read_structures(path.parent / str(name)).structures
        if len(found) != 1:
            raise InputError(f"{name} holds {len(found)} structures; a row of {path} describes one")
        structures.append(found[0][1])
    return structures, values


@properties.command(
    epilog=examples(
        "crystalml predict band-gap *.cif",
        "crystalml predict gap.safetensors *.cif",
        "crystalml predict tc.safetensors candidates/ --quantiles 0.05,0.5,0.95 -o tc.csv --plot tc.png",
    )
)
def predict(
    model: Annotated[str, typer.Argument(help="A fine-tuned model: path, shipped name or hf:// address.")],
    files: Annotated[list[str], typer.Argument(help="Structure files, folders, globs, or CrysDB tables.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="CSV file \\[default: the terminal].")
    ] = None,
    quantiles: Annotated[str | None, typer.Option(help="Levels such as 0.05,0.5,0.95.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Chains of a diffusion model.")] = 64,
    plot: Annotated[Path | None, typer.Option(help="Picture of the distributions, .png or .svg.")] = None,
    device: Device = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Predict a property of crystals from files, with error bars; bad files are reported, others go on."""
    levels = numbers(quantiles, "--quantiles") if quantiles else []
    import pandas as pd

    from crystalml.featurizers.files import read
    from crystalml.property import PropertyPredictor
    from crystalml.property_picture import LEVELS, check_picture, draw

    predictor = PropertyPredictor.load(model, device, progress=not quiet)
    if predictor.classification and (levels or plot is not None):
        raise UnsupportedError(f"{predictor.name} is a class: leave out --quantiles and --plot")
    found = read(files)
    for path, reason in found.failures:
        typer.secho(f"{path}: {reason}", fg=typer.colors.RED, err=True)
    if not found.names:
        raise InputError("none of the files could be read")
    if plot is not None:
        check_picture(plot, len(found.names))
    table = pd.DataFrame({"file": found.names})
    if predictor.classification:
        table[predictor.name] = predictor.predict(found.crystals)
    else:
        value, std, *rest = predictor.predict(found.crystals, True, levels or None, samples)
        table[predictor.name], table["std"] = value, std
        for k, level in enumerate(levels):
            table[f"q{level:g}"] = rest[0][:, k]
    if out is None:
        typer.echo(table.to_csv(index=False, float_format="%.6g").rstrip())
    else:
        with replacing(out) as file:
            table.to_csv(file, index=False, float_format="%.6g")
        typer.echo(f"{len(table)} predictions written to {out}")
    if plot is not None:
        label = f"{predictor.name} ({predictor.unit})" if predictor.unit else predictor.name
        _, fans = predictor.predict(found.crystals, quantiles=LEVELS, n_samples=samples)
        draw(plot, [Path(name).name for name in found.names], fans, label)
    if found.failures:
        raise typer.Exit(1)
