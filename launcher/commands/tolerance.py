"""`dpeer tolerance`: which tolerance a recipe can have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def tolerance(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or the path of a YAML file.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. training.steps=100; repeat.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=5, help="Steps of each pilot; default: those of the recipe.")] = None,
    apply_: Annotated[
        Path | None, typer.Option("--apply", metavar="FILE", help="Write a recipe with the suggested tolerances.")
    ] = None,
) -> None:
    """Try what is reachable with a few pilots, and say which tolerances can be had, at what price, and proven."""
    from rich.console import Console

    from dpeer.errors import ConfigError
    from dpeer.launcher.recipe import training_config
    from dpeer.launcher.tolerance import apply, explore, show

    if apply_ is not None and apply_.exists():
        raise ConfigError(f"--apply {apply_}: the file exists; give a new name")
    config = training_config(recipe, set_ or ())
    reached, page = explore(config, steps)
    show(Console(highlight=False), reached)
    typer.echo(str(page))
    if apply_ is not None:
        apply(apply_, recipe, set_ or (), reached)
        typer.echo(str(apply_))
