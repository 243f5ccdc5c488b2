"""Commands that make the files models are trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crystalml.cli_parts import Device, Seed, examples
from crystalml.device import pick_device

data = typer.Typer()


@data.command(
    epilog=examples(
        "crystalml pack ../shared/data -o train.safetensors --max-atoms 20",
        "crystalml pack ../shared/data -o p.safetensors --max-atoms 20 --labelled --frames 15000",
        "crystalml pack ../shared/data -o val.safetensors --split val --benchmark mp_20_val",
        "crystalml pack ../shared/data -o f.safetensors --labelled --frames 149057 --forces --align --minima",
    )
)
def pack(
    folder: Annotated[Path, typer.Argument(help="A CrysDB folder (crysdb/*.parquet, frames/*.parquet).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The packed file, .safetensors.")],
    split: Annotated[str, typer.Option(help="train or val.")] = "train",
    max_atoms: Annotated[int | None, typer.Option(min=1, help="Leave out larger cells.")] = None,
    frames: Annotated[int, typer.Option(min=0, help="Add this many rattled or decorated frames.")] = 0,
    subset: Annotated[
        str | None, typer.Option("--benchmark", help="Only mp_20_train, mp_20_val or mpts_52_val.")
    ] = None,
    labelled: Annotated[bool, typer.Option("--labelled", help="Only crystals with an energy.")] = False,
    forces: Annotated[
        bool, typer.Option("--forces", help="Frames carry forces and stresses, for dao-p.")
    ] = False,
    align: Annotated[
        bool, typer.Option("--align", help="Move frames to the DFT energies of their crystals.")
    ] = False,
    minima: Annotated[
        bool, typer.Option("--minima", help="Crystals carry zero forces and stresses: DFT relaxed them.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Pack a CrysDB folder into one small file to train on."""
    from crystalml.datasets.packing import training_set

    packed = training_set(
        folder, split, max_atoms, frames, seed,
        benchmark=subset, labelled=labelled, forces=forces, align=align, minima=minima,
    )  # fmt: skip
    packed.save(out)
    labels = ", ".join(f"{name} ({int(value.isfinite().sum())})" for name, value in packed.labels.items())
    typer.echo(f"{len(packed)} crystals, {len(packed.numbers)} atoms written to {out}; labels: {labels}")


@data.command(
    name="pack-moduli",
    epilog=examples(
        "crystalml pack-moduli ../shared/data -o moduli.safetensors",
        "crystalml train dao-p --data frames.safetensors --moduli moduli.safetensors --minutes 600 -o runs/p",
    ),
)
def pack_moduli(
    folder: Annotated[Path, typer.Argument(help="A CrysDB folder with MatBench's moduli (properties/).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The packed file, .safetensors.")],
    model: Annotated[
        str, typer.Option(help="Potential that says how atoms answer a strain: name, path or hf:// address.")
    ] = "dao-p",
    split: Annotated[str, typer.Option(help="train, or val: the fifth held out.")] = "train",
    max_atoms: Annotated[int, typer.Option(min=1, help="Leave out larger cells.")] = 6,
    device: Device = None,
) -> None:
    """Pack crystals with their elastic moduli, for a potential to learn beside."""
    from crystalml.moduli_data import moduli_data
    from crystalml.weights import load_model

    packed = moduli_data(folder, load_model(model, pick_device(device)), split, max_atoms)
    packed.save(out)
    typer.echo(f"{len(packed)} crystals, {len(packed.numbers)} atoms written to {out}")


@data.command(name="pack-csd", epilog=examples("crystalml pack-csd -o csd.safetensors --max-atoms 200"))
def pack_csd(
    out: Annotated[Path, typer.Option("--out", "-o", help="The packed file, .safetensors.")],
    limit: Annotated[
        int | None, typer.Option(min=1, help="Look at so many entries \\[default: all].")
    ] = None,
    max_atoms: Annotated[int | None, typer.Option(min=1, help="Leave out larger cells.")] = 200,
) -> None:
    """Pack the Cambridge Structural Database for pretraining; needs its Python API and a licence."""
    from crystalml.datasets.csd import pack_csd as run

    packed, reasons = run(limit, max_atoms)
    packed.save(out)
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    typer.echo(f"{len(packed)} crystals written to {out}; entries: {told}")
