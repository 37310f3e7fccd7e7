"""The command line of the checks."""

from __future__ import annotations

import json
import signal
from typing import Annotated

import typer
from rich.console import Console

from dpeer.errors import ConfigError


def preflight(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or the path of a YAML file.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. cluster.nodes=8; repeat.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only nodes, files and network: what every run on a cluster checks first.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lines as JSON.")] = False,
) -> None:
    """Check config, nodes, disks, network, data and model before a run starts; exit code 1 if it would fail."""
    from dpeer.launcher.preflight.checklist import Checklist

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that temporary folders go
    checks = Checklist()
    with Console(stderr=True).status("checking") as status:
        try:
            from dpeer.launcher.recipe import training_config

            config = training_config(recipe, set_ or ())
        except ConfigError as error:
            checks.fail("config", error)
        else:
            from dpeer.launcher.preflight.full import full

            full(config, checks, only_quick=quick, say=status.update)
    if as_json:
        typer.echo(json.dumps({"recipe": recipe} | checks.to_dict(), indent=1))
    else:
        checks.show(Console(highlight=False))
    raise typer.Exit(0 if checks.ok else 1)
