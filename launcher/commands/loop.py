"""`dpeer loop`: rounds of training and judging, each with the tolerances that the last one suggests."""

from __future__ import annotations

from typing import Annotated

import typer


def loop(
    file: Annotated[str, typer.Argument(metavar="LOOP", help="A loop file (YAML), or the name of a shipped one.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the loop file, e.g. rounds=5; repeat."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the configs of the first round and stop.")] = False,
) -> None:
    """Train, judge, estimate abilities, move the tolerances, and again; a stopped loop goes on where it was."""
    from dpeer.launcher.loop.spec import evaluation, load_loop, training

    spec, path = load_loop(file, set_ or ())
    first = training(spec, path, 1)
    judged = evaluation(spec, path, first, 1)
    if dry_run:
        from dpeer.config_io import resolved_yaml

        for title, config in (("training", first), ("evaluation", judged)):
            typer.echo(f"# {title}\n{resolved_yaml(config)}", nl=False)
        return
    from rich.console import Console

    from dpeer.launcher.loop.run import run

    raise typer.Exit(run(spec, path, Console(highlight=False)))
