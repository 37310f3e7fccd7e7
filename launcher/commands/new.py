"""`dpeer new`: write a recipe for a data set and a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dpeer.launcher.commands.data import Mapped, _map


def new(
    data: Annotated[str | None, typer.Option(help="Preference data: a file, a folder or a hub id.")] = None,
    model: Annotated[str | None, typer.Option(help="Model to train: a folder or a hub id.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; default: that of the data.")] = None,
    map_: Mapped = None,
    lora: Annotated[
        bool | None, typer.Option("--lora/--full", help="Train adapters, or all weights; default: what fits.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.01, max=0.69, help="Mean loss per pair that every dimension should reach.")
    ] = 0.5,
    gpu: Annotated[
        str | None, typer.Option(help="GPU to train on, if not those of this machine: rtx4090, h100, ...")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="How many; default: all of this machine, or one.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.yaml", help="Recipe to write; default: NAME.yaml.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Also write this setting; repeat.")
    ] = None,
) -> None:
    """Write a recipe for your data and model, with the reason beside every choice; asks for what is not given."""
    data = data or _ask("--data", "Preference data (file, folder or hub id)")
    model = model or _ask("--model", "Model to train (folder or hub id)")
    if name is None:
        name = Path(data).stem
        name = str(typer.prompt("Name of the run", default=name)) if _terminal() else name
    from dpeer.launcher.new import Wish
    from dpeer.launcher.new import new as write

    path = output or Path(f"{name}.yaml")
    config = write(Wish(data, model, name, _map(map_), lora, tolerance, gpu, gpus), path, set_ or ())
    typer.echo(path.read_text(), nl=False)
    typer.echo(f"\n{path} is written; the run's folder will be {config.run_dir}")


def _terminal() -> bool:
    return sys.stdin.isatty()


def _ask(option: str, question: str) -> str:
    from dpeer.errors import ConfigError

    if not _terminal():
        raise ConfigError(
            f"{option} is not given, and there is no terminal to ask on: dpeer new --data FILE --model MODEL"
        )
    return str(typer.prompt(question))
