"""Commands that turn crystals into features, results into pictures, and measure models of properties."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crystalml.cli_parts import Device, FriendlyGroup, Seed, examples, numbers, whole_numbers
from crystalml.device import pick_device
from crystalml.errors import FileReadError, InputError, UnsupportedError
from crystalml.replacing import replacing

if TYPE_CHECKING:
    import pandas as pd

features = typer.Typer()
plot = typer.Typer(cls=FriendlyGroup, no_args_is_help=True, help="Draw results as pictures.")
features.add_typer(plot, name="plot")
measures = typer.Typer()  # stands among the commands of `crystalml benchmark`

Picture = Annotated[Path, typer.Option("--out", "-o", help="Picture: .png, .svg or .pdf.")]


@features.command(
    epilog=examples(
        "crystalml featurize *.cif -o features.parquet",
        "crystalml featurize structures/ --sites -o sites.csv",
        "crystalml featurize ../shared/data/crysdb/mp.parquet -n 5000 --model dao-g -o mp.parquet",
    )
)
def featurize(
    files: Annotated[list[str], typer.Argument(help="Structure files, folders, globs, or CrysDB tables.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Table: .parquet or .csv.")],
    model: Annotated[str, typer.Option(help="Shipped name, path or hf:// address.")] = "fourierframenet-pfm",
    sites: Annotated[bool, typer.Option("--sites", help="One row an atom, not one a crystal.")] = False,
    primitive: Annotated[bool, typer.Option(help="Reduce to primitive cells first.")] = True,
    n: Annotated[int | None, typer.Option("-n", min=1, help="So many at random \\[default: all].")] = None,
    seed: Seed = 0,
    device: Device = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Features of crystals by a pretrained network; bad files are reported and the others go on."""
    if out.suffix not in (".parquet", ".csv"):
        raise InputError(f"--out {str(out)!r} must end in .parquet or .csv")
    _check_parquet(out)
    from crystalml.featurizers.files import elements, read, table
    from crystalml.weights import load_model

    network = load_model(model, pick_device(device))
    found = read(files, n, seed, elements(network))
    for name, reason in found.failures:
        typer.secho(f"{name}: {reason}", fg=typer.colors.RED, err=True)
    if not found.names:
        raise InputError("none of the files could be read")
    rows = table(found, network, sites, primitive, device, progress=not quiet)
    _write(rows, out)
    typer.echo(f"{len(rows)} rows of features written to {out}")
    if found.failures:
        raise typer.Exit(1)


def _write(rows: pd.DataFrame, out: Path) -> None:
    with replacing(out) as file:
        if out.suffix == ".csv":
            rows.to_csv(file, index=False)
        else:
            rows.to_parquet(file, index=False)


def _check_parquet(path: Path) -> None:
    """Raises UnsupportedError for Parquet files where pandas cannot have them, before the work."""
    if path.suffix == ".parquet" and not find_spec("pyarrow"):
        raise UnsupportedError(f'{path} needs pyarrow: pip install "crystalml-dao[data]", or take a .csv')


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    if not path.is_file():
        raise InputError(f"no table at {path}")
    _check_parquet(path)
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except ValueError as error:  # those of pandas and pyarrow are kinds of it
        raise FileReadError(f"{path} is no table: {error}") from error


def _column(rows: pd.DataFrame, name: str, path: Path) -> Any:
    if name not in rows:
        raise InputError(f"{path} has no column {name!r}; it has {', '.join(map(str, rows.columns))}")
    return rows[name].to_numpy()


@plot.command(epilog=examples("crystalml plot parity found.csv --truth gap --value predicted --unit eV"))
def parity(
    table: Annotated[Path, typer.Argument(help="CSV or Parquet with true and predicted values.")],
    truth: Annotated[str, typer.Option(help="Column of the true values.")],
    value: Annotated[str, typer.Option(help="Column of the predictions.")],
    std: Annotated[str | None, typer.Option(help="Column of the error bars.")] = None,
    unit: Annotated[str, typer.Option(help="Of the values.")] = "",
    out: Picture = Path("parity.png"),
) -> None:
    """Predicted against true values, with the errors' distribution."""
    from crystalml.pictures import parity as draw

    rows = _read(table)
    error_bars = _column(rows, std, table) if std else None
    mae = draw(out, _column(rows, truth, table), _column(rows, value, table), error_bars, value, unit)
    typer.echo(f"MAE {mae:.4g} {unit}".rstrip() + f"; picture: {out}")


@plot.command(epilog=examples("crystalml plot curves benchmark-matbench/result.json -o curves.png"))
def curves(
    result: Annotated[Path, typer.Argument(help="result.json of `crystalml benchmark matbench`.")],
    out: Picture = Path("curves.png"),
) -> None:
    """Learning curves: error against the number of labels, one panel a task."""
    import json

    from crystalml.pictures import learning_curves

    if not result.is_file():
        raise InputError(f"no result at {result}")
    learning_curves(out, json.loads(result.read_text()))
    typer.echo(f"Picture: {out}")


@plot.command(
    name="map",
    epilog=examples(
        "crystalml plot map f.parquet",
        "crystalml plot map f.parquet --method umap -o map.html",
    ),
)
def map_(
    table: Annotated[Path, typer.Argument(help="Table written by `crystalml featurize`.")],
    method: Annotated[str, typer.Option(help="pca, tsne or umap (needs umap-learn).")] = "pca",
    color: Annotated[str | None, typer.Option(help="Column to color by \\[default: chemistry].")] = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Picture, or .html to look around in.")] = Path(
        "map.png"
    ),
) -> None:
    """A map of crystals by their features: neighbours are alike to the network."""
    from crystalml.pictures import crystal_map

    rows = _read(table)
    names = [name for name in rows if str(name).rpartition("_")[2].isdigit()]
    if len(names) < 3:
        raise InputError(f"{table} holds no features; make it by `crystalml featurize`")
    kinds = _column(rows, color, table) if color else None
    crystal_map(out, rows[names].to_numpy(float), _column(rows, "formula", table), kinds, method, seed)
    typer.echo(f"{len(rows)} crystals; picture: {out}")


@measures.command(
    epilog=examples(
        "crystalml benchmark matbench DATA --tasks phonons,dielectric --max-train 1000 --seen 10000",
        "crystalml benchmark matbench DATA --tasks log_kvrh --rows random,pfm --shares 5,10,20,50,100",
        "crystalml benchmark matbench DATA --rows rr --encoder rr=rr.safetensors",
        "crystalml benchmark matbench DATA --tasks mp_gap,log_kvrh --rows mean,ready --seeds 0",
    )
)
def matbench(
    folder: Annotated[Path, typer.Argument(help="Folder of the real data (properties/, tests/, crysdb/).")],
    tasks: Annotated[str, typer.Option(help="List of tasks, or all.")] = "all",
    rows: Annotated[
        str,
        typer.Option(
            help="mean, magpie-rf, random, pfm, dao-p, dao-p-diffusion, ready, NAME of --encoder, "
            "NAME-ridge, NAME-frozen."
        ),
    ] = "mean,magpie-rf,random,pfm,pfm-ridge,dao-p",
    encoder: Annotated[
        list[str] | None, typer.Option(help="NAME=weights of a further row; may be repeated.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Of the splits; with --folds official the folds.")] = "0,1,2",
    shares: Annotated[str, typer.Option(help="Percent of the training labels: learning curves.")] = "100",
    folds: Annotated[str, typer.Option(help="random (60/20/20, the paper's) or official (MatBench's).")] = (
        "random"
    ),
    max_train: Annotated[int | None, typer.Option(min=2, help="Labels at most \\[default: all].")] = None,
    max_test: Annotated[int | None, typer.Option(min=1, help="Test crystals at most.")] = None,
    seen: Annotated[int, typer.Option(min=1, help="Crystals shown to a network while it learns.")] = 100_000,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of results.")] = Path("benchmark-matbench"),
    keep: Annotated[Path | None, typer.Option(help="Folder for the fitted models.")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile: minutes, then faster.")] = False,
    device: Device = None,
) -> None:
    """Property prediction on MatBench's tasks; stopped, it goes on where it was."""
    from crystalml.benchmarks.matbench import Settings, run
    from crystalml.benchmarks.matbench_tasks import TASKS

    given = {}
    for text in encoder or ():
        name, equals, weights = text.partition("=")
        if not (name and equals and weights):
            raise InputError(f"--encoder {text!r} is not NAME=weights")
        given[name] = weights
    settings = Settings(
        seeds=tuple(whole_numbers(seeds, "--seeds")),
        shares=tuple(whole_numbers(shares, "--shares")),
        folds=folds,
        max_train=max_train,
        max_test=max_test,
        seen=seen,
        lr=lr,
    )
    names = tuple(TASKS) if tasks == "all" else tuple(tasks.split(","))
    given_rows = tuple(rows.split(","))
    run(
        folder,
        names,
        given_rows,
        settings,
        encoders=given,
        out=out,
        keep=keep,
        device=device,
        compile=compile,
    )


@measures.command(name="features", epilog=examples("crystalml benchmark features crystals.parquet -n 100"))
def features_speed(
    data: Annotated[Path, typer.Argument(help="Parquet file of crystals.")],
    n: Annotated[int, typer.Option("-n", min=2, help="Crystals, drawn at random.")] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; the fastest counts.")] = 3,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file of the result.")] = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Featurizing throughput beside matminer and MEGNet."""
    from crystalml.benchmarks.features import run

    run(data, n=n, repeats=repeats, seed=seed, out=out, device=device)


@measures.command(
    epilog=examples(
        "crystalml benchmark crysdiff DATA",
        "crystalml benchmark crysdiff DATA --properties jarvis-kv,mp-log_k --fractions 5,20,100",
        "crystalml benchmark crysdiff DATA --properties jarvis-e_form,mp-log_k --ablation",
    )
)
def crysdiff(
    folder: Annotated[Path, typer.Argument(help="The folder with properties/ and crysdb/.")],
    properties: Annotated[
        str | None, typer.Option(help="A list such as jarvis-kv,mp-gap \\[default: all]")
    ] = None,
    rows: Annotated[str | None, typer.Option(help="'frozen + diffusion,...' \\[default: all]")] = None,
    fractions: Annotated[str, typer.Option(help="Percent of the labels, a list.")] = "100",
    encoder: Annotated[str, typer.Option(help="Pretrained weights to start from.")] = "diffcsp",
    seen: Annotated[
        int, typer.Option(min=1, help="Crystals shown in each fit; ten times if frozen.")
    ] = 200_000,
    minutes: Annotated[float | None, typer.Option(help="Of each fit at most.")] = None,
    max_train: Annotated[int | None, typer.Option(min=2, help="Labels at most.")] = None,
    max_test: Annotated[int | None, typer.Option(min=1, help="Test crystals at most.")] = None,
    max_atoms: Annotated[int | None, typer.Option(min=1, help="Leave out larger cells.")] = None,
    encoder_lr: Annotated[float | None, typer.Option(help="Of pretrained encoders.")] = None,
    ablation: Annotated[
        bool,
        typer.Option("--ablation", help="The rows of the paper's Figure 5, from encoders pretrained here."),
    ] = False,
    pretrain: Annotated[
        int, typer.Option(min=1, help="Crystals shown to each network of the ablation.")
    ] = 200_000,
    size: Annotated[
        str, typer.Option(help="Of the ablation's networks: tiny, small, base, paper.")
    ] = "small",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of results.")] = Path("benchmark-crysdiff"),
    seeds: Annotated[str, typer.Option(help="Of splits, labels drawn and first weights.")] = "0",
    device: Device = None,
) -> None:
    """Properties by diffusion beside regression: errors, CRPS, coverage; stopped, it goes on."""
    from crystalml.benchmarks.crysdiff import ABLATION, PROPERTIES, USUAL, Settings, run

    settings = Settings(
        encoder,
        seen,
        minutes,
        max_train,
        max_test,
        max_atoms,
        encoder_lr=encoder_lr,
        pretrain=pretrain,
        size=size,  # type: ignore[arg-type]  # checked by the recipe, which lists the sizes
    )
    run(
        folder,
        properties.split(",") if properties else PROPERTIES,
        [*(rows.split(",") if rows else () if ablation else USUAL), *(ABLATION if ablation else ())],
        numbers(fractions, "--fractions"),
        settings,
        seeds=whole_numbers(seeds, "--seeds"),
        out=out,
        device=device,
    )
