"""Commands that judge: a set of samples, and a chemical system against its convex hull."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crystalml.cli_lab import benchmark
from crystalml.cli_parts import Device, Seed, Subset, examples, two_numbers, whole_numbers
from crystalml.errors import InputError
from crystalml.weights import DEFAULT_POTENTIAL

if TYPE_CHECKING:
    from crystalml.hull.result import Exploration

Reference = Annotated[
    str | None, typer.Option(help="What samples should be like: files, a folder, table.parquet#split.")
]
Known = Annotated[
    str | None, typer.Option(help="What is not novel, such as training crystals \\[default: reference].")
]
EmbedderName = Annotated[
    str | None,
    typer.Option(
        help="Of the Frechet distance: a model, megnet[:FOLDER], alignn[:FOLDER] or module:name "
        "\\[default: the default potential]."
    ),
]
Hull = Annotated[
    Path | None,
    typer.Option("--hull", help="Known phases: .json, .json.xz, .parquet or .csv \\[default: CrysDB's]."),
]

judge = typer.Typer()


@judge.command(
    epilog=examples(
        "crystalml evaluate samples.extxyz",
        "crystalml evaluate samples.cif.zip --reference mp_20_test.parquet --known mp.parquet#train",
        "crystalml evaluate benchmark-csp/samples.jsonl --reference mp_20_test.parquet --only match",
        "crystalml evaluate *.cif --reference folder --embedder megnet:FOLDER --relax 200 --processes 8",
    )
)
def evaluate(
    generated: Annotated[list[str], typer.Argument(help="Structure files, folders, globs, Parquet tables.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of report, table and metrics.")] = Path(
        "evaluation"
    ),
    reference: Reference = None,
    known: Known = None,
    only: Annotated[
        str, typer.Option(help="Groups of metrics, such as validity,match \\[default: all that can be].")
    ] = "",
    energy_model: Annotated[str, typer.Option(help="Model of energies and relaxation.")] = DEFAULT_POTENTIAL,
    embedder: EmbedderName = None,
    hull: Hull = None,
    stable: Annotated[float, typer.Option(help="eV/atom above the hull that count as stable.")] = 0.1,
    relax: Annotated[
        int, typer.Option(min=0, help="Relax with at most so many steps before hull and S.U.N.")
    ] = 0,
    shots: Annotated[str, typer.Option(help="Samples a target, a list such as 1,20.")] = "1,20",
    cutoffs: Annotated[
        str, typer.Option(help="Of coverage: structure,composition; 0.2,4 for Perov-5 and Carbon-24.")
    ] = "0.4,10",
    processes: Annotated[int, typer.Option(min=1, help="Processes for matching and symmetry.")] = 1,
    seed: Seed = 0,
    device: Device = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Judge the samples of any generator; stopped, it goes on where it was."""
    counts, limits = whole_numbers(shots, "--shots"), two_numbers(cutoffs, "--cutoffs", "0.4,10")
    from crystalml.evaluation.run import evaluate as run
    from crystalml.metrics.coverage import Cutoffs

    groups = [part.strip() for part in only.split(",") if part.strip()]
    result = run(
        generated,
        reference,
        known=known,
        metrics=groups or None,
        out=out,
        energy_model=energy_model,
        embedder=_embedder(embedder),
        hull=hull,
        stable=stable,
        relax_steps=relax,
        shots=counts,
        cutoffs=Cutoffs(*limits),
        processes=processes,
        seed=seed,
        device=device,
        progress=not quiet,
    )
    result.show()
    for path in result.save(out):
        typer.echo(path)


@judge.command(
    epilog=examples(
        "crystalml hull Li-Fe-O",
        "crystalml hull Na-Cl --formulas NaCl,NaCl3,Na3Cl -n 20 --strategy diffusion -o na-cl",
        "crystalml hull Ti-Ni-Sn --hull mine.parquet --max-formulas 100",
    )
)
def hull(
    system: Annotated[str, typer.Argument(help="Elements joined by hyphens, such as Li-Fe-O.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder \\[default: hull-SYSTEM].")] = None,
    formulas: Annotated[
        str, typer.Option(help="Sample these, such as LiFeO2,Li2O \\[default: chosen].")
    ] = "",
    max_formulas: Annotated[int, typer.Option(min=1, help="Most formulas to choose.")] = 40,
    max_formula_atoms: Annotated[int, typer.Option(min=2, help="Most atoms of a formula chosen.")] = 8,
    n: Annotated[int, typer.Option("-n", min=1, help="Structures of each formula.")] = 8,
    strategy: Annotated[
        str, typer.Option(help="Of `crystalml generate`: prototype, diffusion ...")
    ] = "prototype",
    energy_model: Annotated[str, typer.Option(help="Of relaxation and energies.")] = DEFAULT_POTENTIAL,
    table: Hull = None,
    max_steps: Annotated[int, typer.Option(min=0, help="Steps of a relaxation.")] = 200,
    seed: Seed = 0,
    device: Device = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Sample a chemical system, relax, and draw its phase diagram; stopped, it goes on where it was."""
    from crystalml.hull.explore import chemical_system, explore

    folder = out or Path(f"hull-{'-'.join(chemical_system(system))}")
    found = explore(
        system,
        formulas=[part.strip() for part in formulas.split(",") if part.strip()] or None,
        max_formula_atoms=max_formula_atoms,
        max_formulas=max_formulas,
        n=n,
        strategy=strategy,
        energy_model=energy_model,
        hull=table,
        max_steps=max_steps,
        out=folder,
        seed=seed,
        device=device,
        progress=not quiet,
    )
    _show(found)
    for path in found.save(folder):
        typer.echo(path)


def _show(found: Exploration) -> None:
    from crystalml.benchmarks.report import show

    def number(value: float | None) -> str:
        return "" if value is None or value != value else f"{value:.3f}"

    rows = [
        (
            phase.formula,
            number(phase.energy_above_hull),
            number(phase.formation_energy_per_atom),
            number(phase.known_energy_per_atom),
            phase.spacegroup,
            phase.samples,
            "new hull" if phase.on_new_hull else phase.error[:60],
        )
        for phase in found.phases[:30]
    ]
    shift = found.shift()
    note = f"{len(found.phases)} formulas, {len(found.known)} known phases"
    if shift is not None:
        note += f"; samples minus table, {shift[2]} formulas: {shift[0]:+.3f} eV/atom, MAE {shift[1]:.3f}"
    columns = ["", "above hull", "formation energy", "table's", "space group", "samples", ""]
    show(f"{'-'.join(found.system)}, eV/atom", columns, rows, note)


@judge.command(
    "hull-table",
    epilog=examples(
        "crystalml hull-table ../shared/data -o hull.json.xz",
        "crystalml hull-table ../shared/data -o all.json --margin 10 --processes 8",
    ),
)
def hull_table(
    folder: Annotated[Path, typer.Argument(help="A CrysDB folder (crysdb/*.parquet).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The table: .json or .json.xz.")],
    margin: Annotated[
        float, typer.Option(min=0, help="Keep formulas up to this above the hull (eV/atom).")
    ] = 0.1,
    processes: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
) -> None:
    """Make the table of known phases that energies above the hull are taken from."""
    if not out.name.endswith((".json", ".json.xz")):
        raise InputError(f"cannot tell the format of {str(out)!r}: end it in .json or .json.xz")
    from crystalml.metrics.crysdb_hull import crysdb_hull

    found = crysdb_hull(folder, margin, processes)
    found.save(out)
    typer.echo(f"{len(found):,} phases within {margin:g} eV/atom of the hull written to {out}")


def _embedder(text: str | None) -> Any:
    """A name stays a name; "module:name" and "file.py:name" are loaded and, being classes, made."""
    if text is None or text.startswith(("megnet", "alignn", "hf://")) or ":" not in text:
        return text
    from crystalml.cli_check import factory

    found = factory(text)
    return found() if isinstance(found, type) else found


@benchmark.command(
    epilog=examples(
        "crystalml benchmark frechet --test mp_20_test.parquet",
        "crystalml benchmark frechet --test mp.parquet --benchmark mp_20_val -n 2000 --embedder dao-g",
    )
)
def frechet(
    test: Annotated[Path, typer.Option(help="Parquet file of crystals.")],
    embedder: EmbedderName = None,
    subset: Subset = None,
    n: Annotated[int | None, typer.Option("--n", "-n", min=8, help="Crystals \\[default: all].")] = None,
    noisy: Annotated[int, typer.Option(min=8, help="Of these, to add noise to half of.")] = 2000,
    seeds: Annotated[str, typer.Option(help="A list such as 0,1,2.")] = "0,1,2",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of result and picture.")] = Path(
        "benchmark-frechet"
    ),
    device: Device = None,
) -> None:
    """How a Frechet distance rises with noise and falls with the number of crystals."""
    from crystalml.benchmarks.frechet import run

    run(
        test,
        _embedder(embedder),
        benchmark=subset,
        n=n,
        noisy=noisy,
        seeds=whole_numbers(seeds, "--seeds"),
        out=out,
        device=device,
    )


@benchmark.command(
    epilog=examples(
        "crystalml benchmark generators --test mp_20_test.parquet -n 500",
        "crystalml benchmark generators --test mp_20_test.parquet --models gemsdiff,prototypes --repeats 3",
        "crystalml benchmark generators --test mp.parquet --benchmark mp_20_val --models mine.safetensors",
    )
)
def generators(
    test: Annotated[Path, typer.Option(help="Parquet file of crystals, whose compositions are drawn.")],
    models: Annotated[
        str, typer.Option(help="A list of diffusion models; prototypes is the substitution baseline.")
    ] = "gemsdiff,dao-g,diffcsp,prototypes",
    subset: Subset = None,
    n: Annotated[int | None, typer.Option("--n", "-n", min=4, help="Compositions \\[default: all].")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of the sampler \\[default: each its own].")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Seeds, from --seed on, to draw samples by.")] = 1,
    energy_model: Annotated[str, typer.Option(help="Of the energies.")] = DEFAULT_POTENTIAL,
    embedder: EmbedderName = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes for matching and symmetry.")] = 1,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of samples, tables, reports.")] = Path(
        "benchmark-generators"
    ),
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Generators side by side, one sample a composition; stopped, it goes on where it was."""
    from crystalml.evaluation.generators import run

    run(
        test,
        [part.strip() for part in models.split(",")],
        benchmark=subset,
        n=n,
        seed=seed,
        repeats=repeats,
        steps=steps,
        energy_model=energy_model,
        embedder=_embedder(embedder),
        processes=processes,
        out=out,
        device=device,
    )
