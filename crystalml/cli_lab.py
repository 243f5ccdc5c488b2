"""Commands of the laboratory: train models, measure them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from crystalml.cli_parts import Device, FriendlyGroup, Seed, Subset, examples, whole_numbers
from crystalml.device import pick_device
from crystalml.errors import InputError

if TYPE_CHECKING:
    from crystalml.train import Log, TrainConfig

Optimizer = Literal["adamw", "muon"]

lab = typer.Typer()
benchmark = typer.Typer(cls=FriendlyGroup, no_args_is_help=True, help="Measure models.")
lab.add_typer(benchmark, name="benchmark")


@lab.command(
    epilog=examples(
        "crystalml train dao-g --data train.safetensors --val val.safetensors --minutes 60 -o runs/dao-g",
        "crystalml train dao-p --data frames.safetensors --size base --minutes 600 --device cuda -o runs/p",
        "crystalml train dao-p --data frames.safetensors --moduli moduli.safetensors --minutes 600 -o runs/p",
        "crystalml train dao-g --data mine.safetensors --init model.safetensors --lr 1e-4 -o runs/tuned",
        "torchrun --nproc-per-node 4 -m crystalml.cli train dao-g --data train.safetensors -o runs/four",
    )
)
def train(
    recipe: Annotated[str, typer.Argument(help="dao-g, dao-p, dao-p-diffusion, diffcsp, gemsdiff, ...")],
    data: Annotated[list[Path], typer.Option(help="Packed training set, see `crystalml pack`; or several.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    val: Annotated[Path | None, typer.Option(help="Packed validation set.")] = None,
    size: Annotated[str, typer.Option(help="tiny, small, base or paper.")] = "small",
    minutes: Annotated[
        float | None, typer.Option(help="Train this long \\[default: 10 if no --steps].")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Or end after this many steps.")] = None,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(min=0, help="The optimiser's.")] = 0.0,
    optimizer: Annotated[Optimizer, typer.Option(help="muon: fewer, slower steps.")] = "adamw",
    pairs: Annotated[int, typer.Option(min=1, help="Atom pairs a batch, padded: more needs memory.")] = 8_000,
    max_atoms: Annotated[int | None, typer.Option(min=1, help="Leave out larger cells.")] = None,
    init: Annotated[
        str | None, typer.Option(help="Start from these weights: a file, or a name of `crystalml models`.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with the run in --out, if there is one.")] = True,
    compile: Annotated[
        bool | None, typer.Option(help="torch.compile: minutes at first, then faster \\[default: on a GPU].")
    ] = None,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="dao-p: products in bfloat16, with --compile.")
    ] = False,
    moduli: Annotated[
        Path | None, typer.Option(help="dao-p: elastic moduli to learn beside, see `crystalml pack-moduli`.")
    ] = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Train a model; stop it at any moment and the same command goes on."""
    from crystalml.datasets.packed import PackedDataset
    from crystalml.train import TrainConfig, distributed
    from crystalml.train import train as run
    from crystalml.training.fit import FitConfig

    if not resume and (out / "state.safetensors").exists():
        raise InputError(f"{out} holds a run and --no-resume was given: choose another --out or delete it.")
    length = 10.0 if minutes is None and steps is None else minutes
    place = str(pick_device(device))
    crystals = PackedDataset.cat([PackedDataset.load(path) for path in data])
    held_out, elastic = (PackedDataset.load(path) if path else None for path in (val, moduli))
    with distributed(place) as place:
        config = TrainConfig(
            recipe,
            out,
            size,  # type: ignore[arg-type]  # checked by the recipe, which lists the sizes
            fit=FitConfig(steps, length, lr, weight_decay=weight_decay, seed=seed, optimizer=optimizer),
            pairs=pairs, max_atoms=max_atoms, init=init, device=place, compile=compile, bf16=bf16,
            moduli=elastic,
        )  # fmt: skip
        _follow(run(config, crystals, held_out), config)
    typer.echo(f"Model: {out / 'model.safetensors'}")


def _follow(logs: Iterator[Log], config: TrainConfig) -> None:
    """Train to the end under a progress bar and tell every milestone."""
    from crystalml.progress import ProgressBar

    with ProgressBar(os.environ.get("RANK", "0") == "0", f"training {config.recipe}") as bar:
        bar.add(1000)
        done = 0
        for log in logs:
            share = round(1000 * log.run.progress.share(config.fit))
            bar.advance(share - done)
            done = share
            if log.milestone:
                typer.echo(_milestone(log))


def _milestone(log: Log) -> str:
    losses = {**log.losses, **{f"val {name}": value for name, value in log.validation.items()}}
    text = "  ".join(f"{name} {value:.4f}" for name, value in losses.items())
    return f"step {log.run.progress.step}  {log.run.progress.seconds / 60:.1f} min  {text}"


@lab.command(
    epilog=examples(
        "crystalml calibrate runs/p/model.safetensors --val val.safetensors -o calibrated.safetensors"
    )
)
def calibrate(
    model: Annotated[str, typer.Argument(help="Shipped name, path or hf:// address of a potential.")],
    val: Annotated[Path, typer.Option(help="Packed crystals the model was not trained on.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The calibrated model, .safetensors.")],
    device: Device = None,
) -> None:
    """Give a potential a calibrated error bar: predictions then carry energy_uncertainty."""

    from crystalml.calibrate import calibrate as run
    from crystalml.datasets.packed import PackedDataset
    from crystalml.models.error_bar import LEVELS
    from crystalml.training.checkpoint import save_model
    from crystalml.weights import load_model

    if out.suffix != ".safetensors":
        raise InputError(f"--out {str(out)!r} must end in .safetensors")
    data = PackedDataset.load(val)
    loaded = load_model(model, pick_device(device))
    calibrated = run(loaded, data, progress=True)
    bar = calibrated.error_bar
    assert bar is not None  # that is what calibrate adds
    save_model(calibrated, out, calibrated.card)
    factors = ", ".join(f"{100 * level:.0f} %: {bar.factor(level):.2f}" for level in LEVELS)
    typer.echo(f"Calibrated model: {out} (widths relative to the 68 % bar: {factors})")


@benchmark.command(
    epilog=examples(
        "crystalml benchmark csp --test mp_20_test.parquet --shots 1,20 --n 500 --seed 0",
        "crystalml benchmark csp --test mp_20_test.parquet --model runs/dao-g/model.safetensors --steps 200",
    )
)
def csp(
    test: Annotated[Path, typer.Option(help="Parquet file of target crystals, or structure files.")],
    model: Annotated[str, typer.Option(help="Shipped name, path or hf:// address.")] = "dao-g",
    shots: Annotated[str, typer.Option(help="Samples a target, a list such as 1,20.")] = "1,20",
    n: Annotated[int | None, typer.Option("--n", "-n", min=1, help="Targets \\[default: all].")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampling steps \\[default: the recipe's].")
    ] = None,
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

    if order not in ("code", "paper"):
        raise InputError(f"--order must be code or paper, not {order!r}.")
    run(
        test,
        model,
        shots=whole_numbers(shots, "--shots"),
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


@benchmark.command(epilog=examples("crystalml benchmark energy --test mp_20_test.parquet --model dao-p"))
def energy(
    test: Annotated[Path, typer.Option(help="Parquet file with formation energies.")],
    model: Annotated[str, typer.Option(help="Shipped name, path or hf:// address.")] = "dao-p",
    n: Annotated[int | None, typer.Option("--n", "-n", min=1, help="Crystals \\[default: all].")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file of the result.")] = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Mean absolute error of the predicted energy per atom."""
    from crystalml.benchmarks.energy import run

    run(test, model, n=n, seed=seed, out=out, device=device)


@benchmark.command(
    epilog=examples("crystalml benchmark prototypes --test mp_20_test.parquet --shots 1,5,20 -n 500")
)
def prototypes(
    test: Annotated[Path, typer.Option(help="Parquet file of target crystals, or structure files.")],
    shots: Annotated[str, typer.Option(help="Predictions a target, a list such as 1,20.")] = "1,5,20",
    n: Annotated[int | None, typer.Option("--n", "-n", min=1, help="Targets \\[default: all].")] = None,
    subset: Subset = None,
    same_formula: Annotated[
        bool, typer.Option(help="Let training crystals of a target's own formula count.")
    ] = True,
    processes: Annotated[int, typer.Option(min=1, help="Processes for matching.")] = 1,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of results.")] = Path(
        "benchmark-prototypes"
    ),
    seed: Seed = 0,
) -> None:
    """Match rate and RMSE of putting elements on known structure types."""
    from crystalml.benchmarks.prototypes import run

    run(
        test,
        shots=whole_numbers(shots, "--shots"),
        n=n,
        seed=seed,
        benchmark=subset,
        same_formula=same_formula,
        processes=processes,
        out=out,
    )


@benchmark.command(
    epilog=examples(
        "crystalml benchmark forces DATA -n 2000", "crystalml benchmark forces DATA --split dft -n 500"
    )
)
def forces(
    folder: Annotated[Path, typer.Argument(help="A CrysDB folder with labelled frames.")],
    model: Annotated[str, typer.Option(help="Shipped name, path or hf:// address.")] = "dao-p",
    split: Annotated[str, typer.Option(help="val or train (CHGNet's labels), or dft (PBE's).")] = "val",
    n: Annotated[int | None, typer.Option("--n", "-n", min=1, help="Frames \\[default: all].")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file of the result.")] = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Mean absolute errors of energy, forces and stress on frames away from equilibrium."""
    from crystalml.benchmarks.forces import run

    run(folder, model, split=split, n=n, seed=seed, out=out, device=device)


@benchmark.command(
    epilog=examples(
        "crystalml benchmark elastic DATA", "crystalml benchmark elastic DATA -n 20 --max-atoms 2"
    )
)
def elastic(
    folder: Annotated[Path, typer.Argument(help="A CrysDB folder with MatBench's moduli.")],
    model: Annotated[str, typer.Option(help="Shipped name, path or hf:// address.")] = "dao-p",
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Crystals.")] = 100,
    max_atoms: Annotated[int, typer.Option(min=1, help="Leave out larger cells.")] = 8,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file of the result.")] = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Bulk and shear moduli by matcalc against DFT's: what second derivatives are worth."""
    from crystalml.benchmarks.elastic import run

    run(folder, model, n=n, max_atoms=max_atoms, seed=seed, out=out, device=device)


@benchmark.command(
    epilog=examples(
        "crystalml benchmark uncertainty --val val.safetensors",
        "crystalml benchmark uncertainty --model calibrated.safetensors --test mp_20_test.parquet",
    )
)
def uncertainty(
    model: Annotated[str, typer.Option(help="Shipped name, path or hf:// address.")] = "dao-p",
    val: Annotated[Path | None, typer.Option(help="Packed set: half fits bars, half tests them.")] = None,
    test: Annotated[Path | None, typer.Option(help="Parquet file, for the model's own bars.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file of the result.")] = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Coverage of a potential's error bars at 68, 90 and 95 %."""
    from crystalml.benchmarks.uncertainty import run

    run(model, val=val, test=test, seed=seed, out=out, device=device)


@benchmark.command(
    epilog=examples(
        "crystalml benchmark relax ../shared/data", "crystalml benchmark relax DATA -n 50 --timed 0"
    )
)
def relax(
    folder: Annotated[Path, typer.Argument(help="A CrysDB folder.")],
    model: Annotated[str, typer.Option(help="Shipped name, path or hf:// address.")] = "dao-p",
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Validation crystals.")] = 200,
    rattle: Annotated[float, typer.Option(min=0, help="Of each coordinate (A).")] = 0.1,
    strain: Annotated[float, typer.Option(min=0, help="Of each component of the strain.")] = 0.03,
    fmax: Annotated[float, typer.Option(help="Stop when no force exceeds this (eV/A).")] = 0.05,
    max_steps: Annotated[int, typer.Option(min=0, help="Give up after this many steps.")] = 500,
    optimizer: Annotated[str, typer.Option(help="lbfgs or fire.")] = "lbfgs",
    subset: Annotated[str, typer.Option("--benchmark", help="mp_20_val or mpts_52_val.")] = "mp_20_val",
    timed: Annotated[int, typer.Option(min=0, help="Crystals to time against ASE one by one.")] = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds of timing.")] = 3,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file of the result.")] = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Disturbed crystals relaxed: the share that comes back, volume errors, and the time it takes."""
    from crystalml.benchmarks.relax import run
    from crystalml.relaxation.settings import RelaxSettings

    run(
        folder,
        model,
        n=n,
        seed=seed,
        rattle=rattle,
        strain=strain,
        settings=RelaxSettings(fmax, max_steps, optimizer=optimizer),
        subset=subset,
        timed=timed,
        repeats=repeats,
        out=out,
        device=device,
    )


@benchmark.command(
    "potential-speed",
    epilog=examples(
        "crystalml benchmark potential-speed --chgnet-python /opt/chgnet/bin/python",
        "crystalml benchmark potential-speed --relaxations 16 --no-scaling --no-matgl",
    ),
)
def potential_speed(
    model: Annotated[str, typer.Option(help="Shipped name, path or hf:// address.")] = "dao-p",
    chgnet_python: Annotated[
        Path | None, typer.Option(help="Interpreter that has CHGNet installed \\[default: without CHGNet].")
    ] = None,
    matgl: Annotated[bool, typer.Option(help="Time matgl's TensorNet, too.")] = True,
    compiled: Annotated[bool, typer.Option(help="Time the potential compiled, too.")] = True,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; the fastest counts.")] = 5,
    relaxations: Annotated[int, typer.Option(min=0, help="Crystals to relax; 0 for none.")] = 64,
    crystals: Annotated[
        Path | None, typer.Option(help="Parquet file to take them from \\[default: common structure types].")
    ] = None,
    scaling: Annotated[bool, typer.Option(help="Cost per atom up to 5,120 atoms.")] = True,
    threads: Annotated[int, typer.Option(min=1, help="Of each contestant.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file of the result.")] = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Single points, relaxations, cost per atom and memory of a potential, beside CHGNet and matgl."""
    from crystalml.benchmarks.potential_speed import SCALING, run

    run(
        model,
        chgnet_python=chgnet_python,
        matgl=matgl,
        compiled=compiled,
        repeats=repeats,
        relaxations=relaxations,
        crystals=crystals,
        scaling=SCALING if scaling else (),
        threads=threads,
        seed=seed,
        out=out,
        device=device,
    )


@benchmark.command(epilog=examples("crystalml benchmark speed", "crystalml benchmark speed --crystals 256"))
def speed(
    test: Annotated[Path | None, typer.Option(help="Parquet file of crystals \\[default: random]")] = None,
    crystals: Annotated[int, typer.Option(min=1, help="How many.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps to time.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; the fastest counts.")] = 3,
    dim: Annotated[int, typer.Option(min=1, help="Width of all networks.")] = 256,
    depth: Annotated[int, typer.Option(min=1, help="Layers of all networks.")] = 6,
    frequencies: Annotated[int, typer.Option(min=1, help="Fourier frequencies of all.")] = 64,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file of the result.")] = None,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Structures per second of sampling and of single points, beside a plain edge-by-edge reference."""
    from crystalml.benchmarks.speed import run

    run(
        dim=dim,
        depth=depth,
        frequencies=frequencies,
        crystals=crystals,
        steps=steps,
        repeats=repeats,
        test=test,
        seed=seed,
        out=out,
        device=device,
    )
