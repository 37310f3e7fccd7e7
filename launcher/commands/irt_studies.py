"""`dpeer irt simulate` and `recover`: ratings with a known truth, and how well a fit finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dpeer.launcher.commands.irt_options import ModelItem, Settings, Terms, Thresholds, choice, spec_of, terms_of


def simulate(
    output: Annotated[Path, typer.Option("--output", "-o", help="Ratings table to write (Parquet).")],
    set_: Settings = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write simulated ratings and, beside them, the truth as JSON."""
    from dpeer.eval.irt.simulate import simulate as run
    from dpeer.files import write_json

    table, truth = run(spec_of(set_), seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(output, index=False)
    known = output.with_suffix(".truth.json")
    write_json(known, {name: values.tolist() for name, values in truth.items()})
    typer.echo(f"{output}: {len(table):,} ratings; truth in {known}")


def recover(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the study; a stopped one goes on.")],
    set_: Settings = None,
    replications: Annotated[int, typer.Option(min=1)] = 20,
    model: Annotated[str, typer.Option(help="gmfrm, rasch or graded.")] = "gmfrm",
    terms: Terms = None,
    response_effect: Annotated[bool | None, typer.Option("--response-effect/--no-response-effect")] = None,
    model_item: ModelItem = None,
    thresholds: Thresholds = "judge",
    chains: Annotated[int, typer.Option(min=1)] = 4,
    warmup: Annotated[int, typer.Option(min=10)] = 500,
    draws: Annotated[int, typer.Option(min=10)] = 500,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Simulate and fit again and again: how well the intervals cover the truth."""
    from dpeer.eval.irt.recover import recover as run
    from dpeer.eval.irt.recover import recovery_table
    from dpeer.eval.irt.types import MODELS, Options

    options = Options(
        model=choice("--model", model, MODELS),
        response_effect=response_effect,
        model_item=model_item,
        thresholds=choice("--thresholds", thresholds, ("common", "judge", "item")),
        chains=chains,
        warmup=warmup,
        draws=draws,
        **terms_of(terms),
    )
    console = Console(highlight=False)
    with Progress(TextColumn("replications"), BarColumn(20), TimeElapsedColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=replications)
        recovery = run(spec_of(set_), options, replications, seed, output, lambda n, of: bar.update(task, completed=n))
    console.print(recovery_table(recovery))
