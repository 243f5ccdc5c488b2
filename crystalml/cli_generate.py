"""Commands around the generator: structures, stage II data, benchmarks, the fit of its ranker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crystalml.cli_lab import benchmark
from crystalml.cli_parts import Device, Seed, Subset, examples, numbers, two_numbers, whole_numbers
from crystalml.errors import InputError

if TYPE_CHECKING:
    from pymatgen.core import Lattice, Structure

generation = typer.Typer()


@generation.command(
    epilog=examples(
        "crystalml generate CsV3Sb5 -n 20 -o out.extxyz",
        "crystalml generate Li-O -n 10 --max-atoms 12 -o system.cif.zip",
        "crystalml generate TiO2 -n 5 --space-group 136 -o rutile.cif.zip",
        "crystalml generate LiFePO4 -n 20 --strategy prototype -o known.cif.zip",
        "crystalml generate NaCl MgO -n 5 --formula-units 1:4 --strategy diffusion -o out.jsonl",
        "crystalml generate Li2MnO3 --fixed host.cif --strategy diffusion --solver heun -o filled.cif",
    )
)
def generate(
    compositions: Annotated[list[str], typer.Argument(help="Formulas or systems: CsV3Sb5, Li-O.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File: .extxyz, .cif, .cif.zip or .jsonl.")],
    n: Annotated[int, typer.Option("-n", min=0, help="Structures of each (and each Z).")] = 1,
    formula_units: Annotated[
        str, typer.Option("--formula-units", "-z", help="Z: 'auto', 4 or 1:4.")
    ] = "auto",
    strategy: Annotated[
        str, typer.Option(help="auto, hybrid, prototype (known types only) or diffusion.")
    ] = "auto",
    min_atoms: Annotated[int, typer.Option(min=1, help="Smallest cell.")] = 1,
    max_atoms: Annotated[int | None, typer.Option(min=1, help="Largest cell; default: the atlas's.")] = None,
    space_group: Annotated[str | None, typer.Option(help="Keep this one: 136 or P4_2/mnm.")] = None,
    lattice: Annotated[
        str | None, typer.Option(help="Keep this cell: a,b,c,alpha,beta,gamma (A, degrees).")
    ] = None,
    fixed: Annotated[Path | None, typer.Option(help="Keep the cell and sites of this file.")] = None,
    solver: Annotated[str, typer.Option(help="pc, ancestral, euler, heun or multistep.")] = "pc",
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps; default: the solver's.")] = None,
    guidance: Annotated[float, typer.Option(min=0, help="Strength of the pull to low energy.")] = 0.0,
    noise_level: Annotated[
        float, typer.Option(min=0, max=1, help="Noise prototypes this far and denoise them.")
    ] = 0.0,
    rank_by: Annotated[str, typer.Option(help="probability or energy.")] = "probability",
    distinct: Annotated[bool, typer.Option(help="Leave out equal crystals.")] = True,
    same_formula: Annotated[
        bool, typer.Option(help="Let known crystals of the composition count; not, for new polymorphs.")
    ] = True,
    model: Annotated[
        str | None,
        typer.Option(help="Shipped name, path or hf:// address; default: gemsdiff, dao-g to guide."),
    ] = None,
    energy_model: Annotated[str, typer.Option(help="Model for --guidance.")] = "dao-p-diffusion",
    seed: Seed = 0,
    device: Device = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Crystal structures of given formulas or chemical systems, the likeliest first."""
    from crystalml.write import check_format, write_structures

    check_format(out)
    units, cell = _formula_units(formula_units), _lattice(lattice)
    from crystalml.generate import StructureGenerator  # seconds of imports: mistakes show before

    generator = StructureGenerator(model, energy_model, device, solver=solver)  # type: ignore[arg-type]  # checked there
    found = generator.sample(
        compositions, n, formula_units=units, strategy=strategy, min_atoms=min_atoms,  # type: ignore[arg-type]
        max_atoms=max_atoms, space_group=_group(space_group), lattice=cell,
        fixed=_structure(fixed), seed=seed, steps=steps, guidance=guidance, noise_level=noise_level,
        rank_by=rank_by, distinct=distinct, same_formula=same_formula, progress=not quiet,  # type: ignore[arg-type]
    )  # fmt: skip
    flat = [structure for group in found for structure in group]
    for note in write_structures(flat, out):
        typer.secho(note, fg=typer.colors.YELLOW, err=True)
    report = generator.report
    rejected = f", {report.rejected.total()} draws rejected" if report.rejected else ""
    equal = f", {report.duplicates} equal ones left out" if report.duplicates else ""
    typer.echo(f"{report.returned} of {report.requested} structures written to {out}{rejected}{equal}")
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


def _lattice(text: str | None) -> Lattice | None:
    if text is None:
        return None
    values = numbers(text, "--lattice")
    if len(values) != 6 or min(values) <= 0:
        raise InputError(f"--lattice {text!r} is not six positive numbers a,b,c,alpha,beta,gamma")
    from pymatgen.core import Lattice

    return Lattice.from_parameters(*values)


def _group(text: str | None) -> int | str | None:
    return int(text) if text is not None and text.isdecimal() else text


def _structure(path: Path | None) -> Structure | None:
    if path is None:
        return None
    from crystalml.convert import read_structures

    found = read_structures(path).structures
    if len(found) != 1:
        raise InputError(f"--fixed takes one structure, but {path} holds {len(found)}")
    return found[0][1]


@benchmark.command(
    epilog=examples(
        "crystalml benchmark hybrid --test mp_20_test.parquet --shots 1,5,20 -o hybrid-mp20",
        "crystalml benchmark hybrid --test mp.parquet --benchmark mp_20_val -n 300 --no-same-formula --table",
    )
)
def hybrid(
    test: Annotated[Path, typer.Option(help="Parquet file of target crystals, or structure files.")],
    shots: Annotated[str, typer.Option(help="Answers a target, a list such as 1,20.")] = "1,5,20",
    n: Annotated[int | None, typer.Option("--n", "-n", min=1, help="Targets \\[default: all].")] = None,
    subset: Subset = None,
    same_formula: Annotated[
        bool, typer.Option(help="Let training crystals of a target's own formula count.")
    ] = True,
    potential: Annotated[str, typer.Option(help="What tells energies and relaxes, or none.")] = "dao-p",
    ranker: Annotated[Path | None, typer.Option(help="A ranker's JSON \\[default: the shipped one].")] = None,
    pool: Annotated[int, typer.Option(min=1, help="Proposals looked at.")] = 60,
    relax_steps: Annotated[int, typer.Option(min=0, help="Steps of relaxation.")] = 15,
    noise_level: Annotated[float, typer.Option(min=0, max=1, help="Partial noising first.")] = 0.0,
    model: Annotated[str, typer.Option(help="What denoises.")] = "dao-g",
    table: Annotated[bool, typer.Option("--table", help="Write all proposals, for fit-ranker.")] = False,
    gated: Annotated[bool, typer.Option(help="Also report rates behind the validity gate.")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="The potential: faster after minutes.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="Processes for matching.")] = 1,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of results.")] = Path("benchmark-hybrid"),
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Match rate and RMSE of known prototypes, ranked and relaxed; stopped, it goes on where it was."""
    from crystalml.benchmarks.hybrid import Setup, run

    setup = Setup(_optional(potential), ranker, pool, relax_steps, noise_level, model, compile=compile)
    run(
        test, setup, benchmark=subset, shots=whole_numbers(shots, "--shots"), n=n, seed=seed,
        same_formula=same_formula, gated=gated, table=table, out=out, device=device, processes=processes,
    )  # fmt: skip


def _optional(name: str) -> str | None:
    return None if name.lower() == "none" else name


@benchmark.command(
    epilog=examples(
        "crystalml benchmark solvers --test mp.parquet --benchmark mp_20_val -n 200 -o solvers",
        "crystalml benchmark solvers --test mp_20_test.parquet --evaluations 20,50,100 --picture rates.png",
    )
)
def solvers(
    test: Annotated[Path, typer.Option(help="Parquet file of target crystals, or structure files.")],
    model: Annotated[str, typer.Option(help="Shipped name, path or hf:// address.")] = "dao-g",
    names: Annotated[str, typer.Option("--solvers", help="Which.")] = "pc,ancestral,euler,heun,multistep",
    evaluations: Annotated[
        str, typer.Option(help="Network evaluations a sample, at most.")
    ] = "20,50,100,200,2000",
    shots: Annotated[str, typer.Option(help="Samples a target, a list such as 1,20.")] = "1",
    n: Annotated[int | None, typer.Option("--n", "-n", min=1, help="Targets \\[default: all].")] = None,
    subset: Subset = None,
    picture: Annotated[Path | None, typer.Option(help="Draw match rate over evaluations here.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes for matching.")] = 1,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of samples and results.")] = Path(
        "benchmark-solvers"
    ),
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Match rate over network evaluations, solver by solver; stopped, it goes on where it was."""
    from crystalml.benchmarks.solvers import run

    counts = whole_numbers(evaluations, "--evaluations")
    run(
        test, model, solvers=names.split(","),  # type: ignore[arg-type]  # checked there
        evaluations=counts,
        shots=whole_numbers(shots, "--shots"), n=n, benchmark=subset, picture=picture, seed=seed, out=out,
        device=device, processes=processes,
    )  # fmt: skip


@benchmark.command(
    epilog=examples(
        "crystalml benchmark ablation none=a.safetensors I=b.safetensors I+II=c.safetensors "
        "guided=c.safetensors@10 --test mp_20_test.parquet",
        "crystalml benchmark ablation dao-g guided=dao-g@5 --test mp.parquet --benchmark mp_20_val -n 200",
    )
)
def ablation(
    variants: Annotated[list[str], typer.Argument(help="Rows: NAME=MODEL, NAME=MODEL@GUIDANCE or MODEL.")],
    test: Annotated[Path, typer.Option(help="Parquet file of target crystals, or structure files.")],
    subset: Subset = None,
    shots: Annotated[str, typer.Option(help="Samples a target, a list such as 1,20.")] = "1,20",
    n: Annotated[int | None, typer.Option("--n", "-n", min=1, help="Targets \\[default: all].")] = None,
    solver: Annotated[str, typer.Option(help="pc, ancestral, euler, heun or multistep.")] = "pc",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Sampling steps \\[default: the solver's].")
    ] = None,
    guide: Annotated[str, typer.Option(help="Whose energies guidance follows.")] = "dao-p-diffusion",
    energy_model: Annotated[str, typer.Option(help="Whose energies tell stability.")] = "dao-p",
    processes: Annotated[int, typer.Option(min=1, help="Processes for matching.")] = 1,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of samples and results.")] = Path(
        "benchmark-ablation"
    ),
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Variants of a generator on the same targets: match, polymorphs, stability; stopped, it goes on."""
    from crystalml.evaluation.ablation import Variant, run

    run(
        test, [Variant.parse(text) for text in variants], benchmark=subset,
        shots=whole_numbers(shots, "--shots"), n=n,
        solver=solver,  # type: ignore[arg-type]  # checked there
        steps=steps, guide=guide, energy_model=energy_model, processes=processes, out=out, seed=seed,
        device=device,
    )  # fmt: skip


@generation.command(
    name="relax-data",
    epilog=examples(
        "crystalml relax-data train.safetensors -o stage2.safetensors    (started again, it goes on)",
        "crystalml relax-data train.safetensors -o stage2.safetensors --model dao-p-diffusion --device cuda",
    ),
)
def relax_data(
    data: Annotated[Path, typer.Argument(help="Packed training set with energies above the hull.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The relaxed set; rows go to OUT.rows.")],
    model: Annotated[str, typer.Option(help="What relaxes: name, path or hf:// address.")] = "dao-p",
    window: Annotated[str, typer.Option(help="eV/atom above the hull: over the first, up to the other.")] = (
        "0.08,0.5"
    ),
    max_steps: Annotated[int, typer.Option(min=1, help="L-BFGS steps at most.")] = 5,
    max_atoms: Annotated[int | None, typer.Option(min=1, help="Leave out larger cells.")] = None,
    device: Device = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Relax the unstable crystals of a training set, as DAO's second stage asks (see docs/dao.md)."""
    from crystalml.datasets.packed import PackedDataset
    from crystalml.relax_data import relax_data as run

    limits = two_numbers(window, "--window", "0.08,0.5")
    crystals = PackedDataset.load(data).up_to(max_atoms)
    found = run(
        crystals, model, window=limits, max_steps=max_steps, folder=f"{out}.rows",
        device=device, progress=not quiet,
    )  # fmt: skip
    found.data.save(out)
    summary = found.summary()
    typer.echo(
        f"{len(crystals)} crystals written to {out}: {summary['moved']} of {len(found.rows)} in the window "
        f"moved, their energy fell by {summary['mean_fall']:.3f} eV/atom on average"
    )
    for reason, count in summary["kept"].items():
        typer.echo(f"  {count} kept: {reason}")


@generation.command(
    name="label-data",
    epilog=examples(
        "crystalml label-data t.safetensors --calculator chgnet.model:CHGNetCalculator -o near.safetensors",
        "crystalml label-data mine.safetensors --calculator calc.py:make -o near.safetensors --frames 5",
        "crystalml label-data t.safetensors --calculator calc.py:make -o new.safetensors --substituted 1 "
        "--exclude mp_20_test.parquet",
        "crystalml train dao-p --data train.safetensors --data near.safetensors -o runs/p",
    ),
)
def label_data(
    data: Annotated[Path, typer.Argument(help="Packed crystals with energies, see `crystalml pack`.")],
    calculator: Annotated[str, typer.Option(help="module:name or file.py:name; see the docs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The packed frames; rows go to OUT.rows.")],
    frames: Annotated[int, typer.Option(min=1, help="Of each crystal.")] = 1,
    substituted: Annotated[
        int, typer.Option(min=0, help="Crystals with new elements, of each; three frames of one.")
    ] = 0,
    exclude: Annotated[
        list[Path] | None,
        typer.Option(help="Parquet files whose formulas no new crystal may have; again for more."),
    ] = None,
    displacement: Annotated[str, typer.Option(help="Angstrom a coordinate, from the first to the other.")] = (
        "0.004,0.1"
    ),
    strain: Annotated[str, typer.Option(help="Of cells, from the first to the other.")] = "0.001,0.03",
    max_change: Annotated[
        float, typer.Option(help="eV/atom that a move may cost for the calculator to be believed.")
    ] = 0.5,
    max_atoms: Annotated[int | None, typer.Option(min=1, help="Leave out larger cells.")] = None,
    kwargs: Annotated[str, typer.Option(help="Arguments of the class or function, as JSON.")] = "{}",
    seed: Seed = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Displace and strain crystals and label them with a calculator: forces to train a potential on."""
    from crystalml.cli_check import factory
    from crystalml.conformance.subject import factory_of
    from crystalml.datasets.arrays import formulas
    from crystalml.datasets.crysdb import read_parquet
    from crystalml.datasets.packed import PackedDataset
    from crystalml.label_data import label_data as run

    moves = two_numbers(displacement, "--displacement", "0.004,0.1")
    strains = two_numbers(strain, "--strain", "0.001,0.03")
    engine = factory_of(factory(calculator, kwargs))()
    names = {name for file in exclude or () for name in formulas(read_parquet(file))}
    crystals = PackedDataset.load(data).up_to(max_atoms)
    found = run(
        crystals, engine, frames=frames, substituted=substituted, exclude=names, displacement=moves,
        strain=strains, max_change=max_change, seed=seed, folder=f"{out}.rows", progress=not quiet,
    )  # fmt: skip
    found.data.save(out)
    typer.echo(f"{len(found.data)} frames, {len(found.data.numbers)} atoms written to {out}")
    for reason, count in found.failed.items():
        typer.echo(f"  {count} left out: {reason}")


@generation.command(
    name="fit-ranker",
    epilog=examples("crystalml fit-ranker hybrid-mp20-val hybrid-mpts52-val -o ranker.json"),
)
def fit_ranker(
    folders: Annotated[list[Path], typer.Argument(help="Of `benchmark hybrid --table` on validation.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The ranker's JSON.")] = Path("ranker.json"),
    ridge: Annotated[float, typer.Option(min=0, help="Pull of standardised weights to zero.")] = 0.01,
    first: Annotated[
        Path | None, typer.Option(help="A ranker to keep; fit only what follows relaxation.")
    ] = None,
) -> None:
    """Fit the ranker of hybrid prediction to validation crystals, and say what it is worth."""
    from crystalml.benchmarks.ranker import fit
    from crystalml.hybrid.rank import Ranker

    fit(folders, out, ridge, None if first is None else Ranker.load(first))
    typer.echo(f"Ranker: {out}")
