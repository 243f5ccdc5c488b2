"""The command that examines somebody's calculator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crystalml.cli_parts import Seed, examples
from crystalml.errors import InputError

if TYPE_CHECKING:
    from crystalml.conformance.report import Result

check = typer.Typer()


@check.command(
    "check-calculator",
    epilog=examples(
        "crystalml check-calculator ase.calculators.emt:EMT",
        'crystalml check-calculator crystalml:DaoCalculator --kwargs \'{"dtype": "float64"}\' -o report.json',
        "crystalml check-calculator my_calculator.py:make --only dimer --all-pairs",
    ),
)
def check_calculator(
    target: Annotated[
        str, typer.Argument(help="module:name or file.py:name of a class, function or object.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Report: .json or .md.")] = None,
    kwargs: Annotated[str, typer.Option(help="Arguments of the class or function, as JSON.")] = "{}",
    only: Annotated[str, typer.Option(help="Groups of checks, such as forces,stress \\[default: all].")] = "",
    elements: Annotated[str, typer.Option(help="Two that the calculator knows, such as Fe,O.")] = "",
    all_pairs: Annotated[bool, typer.Option(help="Scan the dimers of all known elements: long.")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64 \\[default: found out].")] = None,
    seed: Seed = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No results while it runs.")] = False,
) -> None:
    """Examine an ASE calculator: derivatives, symmetries, cutoff, short distances, ASE's contract.

    Exit code 1 if a law is broken, 2 if nothing can be computed. A case that the calculator refuses with a
    clear error is no failure.
    """
    from dataclasses import replace

    from rich.console import Console

    from crystalml.conformance import check_calculator as run
    from crystalml.conformance.report import check_suffix

    if out:
        check_suffix(out)
    if dtype not in (None, "float32", "float64"):
        raise InputError(f"--dtype must be float32 or float64, not {dtype!r}")

    def show(result: Result) -> None:
        if not quiet:
            typer.echo(f"{result.status:>8}  {result.name}  {result.message}".rstrip(), err=True)

    report = run(
        factory(target, kwargs),
        only=_names(only),
        elements=_pair(elements),
        all_pairs=all_pairs,
        dtype=dtype,  # type: ignore[arg-type]  # checked above
        seed=seed,
        on_result=show,
    )
    report = replace(report, info={"target": target, "settings": kwargs, **report.info})
    Console().print(report.table())
    if out:
        report.save(out)
        typer.echo(f"Report: {out}")
    if not report.ok:
        raise typer.Exit(1)


def factory(target: str, kwargs: str = "{}") -> Any:
    """What "module:name" or "file.py:name" means; classes and functions are bound to their arguments."""
    import sys
    from functools import partial, reduce
    from importlib import import_module
    from runpy import run_path

    place, colon, name = target.rpartition(":")
    if not colon or not name:
        raise InputError(f"{target!r} is not of the form module:name or file.py:name")
    try:
        settings = json.loads(kwargs)
        assert isinstance(settings, dict)
    except (ValueError, AssertionError) as error:
        raise InputError(f'--kwargs {kwargs!r} is no JSON object such as {{"device": "cpu"}}') from error
    try:
        if place.endswith(".py"):
            found = run_path(place)[name]
        else:
            sys.path.append(str(Path.cwd()))  # as python -m does; a script on the path is not started there
            found = reduce(getattr, name.split("."), import_module(place))
    except (ImportError, OSError, AttributeError, KeyError) as error:
        raise InputError(f"cannot load {target!r}: {type(error).__name__}: {error}") from error
    if hasattr(found, "get_potential_energy") and not isinstance(found, type):
        if settings:
            raise InputError(f"{target!r} is an object already: --kwargs would have no effect")
        return found
    return partial(found, **settings) if settings else found


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _pair(text: str) -> tuple[str, str] | None:
    names = _names(text)
    if not names:
        return None
    if len(names) != 2:
        raise InputError(f"--elements {text!r} are not two, such as Fe,O")
    return names[0], names[1]
