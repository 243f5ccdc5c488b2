"""What all commands share: friendly errors, common options, the look of examples."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from crystalml.errors import CrystalMLError

Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; default: a GPU if there is one.")]
Seed = Annotated[int, typer.Option(help="Same seed, same result.")]


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
