"""What all commands share: friendly errors, common options, the look of examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from crystalml.errors import CrystalMLError, InputError

Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; default: a GPU if there is one.")]
Seed = Annotated[int, typer.Option(help="Same seed, same result.")]
Subset = Annotated[
    str | None, typer.Option("--benchmark", help="Of CrysDB's file: mp_20_val or mpts_52_val.")
]
T = TypeVar("T")


def numbers(text: str, option: str) -> list[float]:
    """'1,2.5' -> [1.0, 2.5]."""
    return _listed(text, option, float, "numbers")


def whole_numbers(text: str, option: str) -> list[int]:
    """'1,20' -> [1, 20]."""
    return _listed(text, option, int, "whole numbers")


def two_numbers(text: str, option: str, example: str) -> tuple[float, float]:
    """'0.08,0.5' -> (0.08, 0.5)."""
    found = numbers(text, option)
    if len(found) != 2:
        raise InputError(f"{option} {text!r} is not two numbers such as {example}")
    return found[0], found[1]


def _listed(text: str, option: str, kind: Callable[[str], T], what: str) -> list[T]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} {text!r} is no list of {what} such as 1,20") from error


def examples(*lines: str) -> str:
    """The epilog of a command's help."""
    return "[bold]Examples[/]\n\n" + "\n\n".join(f"  {line}" for line in lines)


class FriendlyGroup(TyperGroup):
    """Errors raised on purpose become one line and exit code 2; bugs keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CrystalMLError as error:
            typer.secho(f"Error: {error}", fg=typer.colors.RED, err=True)
            raise typer.Exit(2) from error
