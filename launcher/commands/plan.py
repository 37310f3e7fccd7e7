"""The `dpeer plan` command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

WIDTH = 120  # of tables where there is no terminal


def plan(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or the path of a YAML file.")],
    nodes: Annotated[int, typer.Option(min=1, help="Nodes.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs per node.")] = 8,
    gpu: Annotated[str, typer.Option(help="h100, h200, b200, a100, ... (launcher/plan/gpus.json).")] = "h100",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. model.lora.rank=16; repeat.")
    ] = None,
    cells: Annotated[int, typer.Option(min=1, help="Runs of a sweep that share one reference cache.")] = 1,
    price: Annotated[float | None, typer.Option(min=0, help="Price of one GPU-hour.")] = None,
    hfu: Annotated[
        float | None,
        typer.Option(
            "--hfu",
            "--mfu",
            min=0.01,
            max=1,
            help="Share of the GPU's peak that training reaches, recomputation counted as work; default 0.35. --mfu is "
            "its old name.",
        ),
    ] = None,
    network: Annotated[
        float | None, typer.Option(min=0.1, help="Network of one node in Gbit/s; default: usual for the GPU.")
    ] = None,
    gpu_memory: Annotated[float | None, typer.Option(min=1, help="GiB of one GPU, instead of the table's.")] = None,
    node_memory: Annotated[float | None, typer.Option(min=1, help="Host memory of one node in GiB, to check.")] = None,
    model_config: Annotated[
        Path | None, typer.Option(help="The model's config.json, where the model itself is out of reach.")
    ] = None,
    records: Annotated[int | None, typer.Option(min=1, help="Training records.")] = None,
    prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a prompt.")] = None,
    response_tokens: Annotated[int | None, typer.Option(min=2, help="Tokens of a response.")] = None,
    rejects: Annotated[int | None, typer.Option(min=1, help="Rejected responses of a record.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """What a recipe needs on a cluster: memory, tokens, traffic, GPU-hours. Exit code 1 when it does not fit."""
    import os

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from dpeer.launcher.plan.inputs import GivenLengths
    from dpeer.launcher.plan.planning import HFU, Request, make_plan, remedies
    from dpeer.launcher.plan.show import as_data, show, verdict
    from dpeer.launcher.recipe import recipe_path

    request = Request(
        recipe=recipe_path(recipe),
        overrides=tuple(set_ or ()),
        nodes=nodes,
        gpus=gpus,
        gpu=gpu,
        gpu_memory=gpu_memory,
        network=network,
        hfu=hfu or HFU,
        node_memory=node_memory,
        model_config=model_config,
        lengths=GivenLengths(records, prompt_tokens, response_tokens, rejects),
    )
    made = make_plan(request)
    fixes = () if made.fits_gpu else remedies(made)
    if as_json:
        typer.echo(json.dumps(as_data(made, cells, price, fixes), indent=2))
    else:
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = WIDTH
        show(made, console, cells, price)
        console.print()
        for line in verdict(made, fixes):
            console.print(line, soft_wrap=True)
    raise typer.Exit(0 if made.fits_gpu and made.fits_host else 1)
