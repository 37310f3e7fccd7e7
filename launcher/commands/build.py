"""`dpeer build`: a data set in PersonaKnob's form from dimensions, seeds and models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpeer.launcher.commands.evaluation import DryRun, Overrides, RetryErrors, _print_config, _stoppable, connected

if TYPE_CHECKING:
    from dpeer.eval.build.spec import BuildSpec


def build(
    spec: Annotated[str, typer.Argument(help="Name of a shipped spec, or the path of a YAML file.")],
    set_: Overrides = None,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Print calls, tokens and what endpoints cost, and stop.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Records of each mask and split, at most: a first look.")
    ] = None,
    review: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write a sheet for people to fill, when all is made.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of that sheet.")] = 200,
    answers: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A sheet that a person has filled, which has the last word; repeat."),
    ] = None,
    retry_errors: RetryErrors = False,
    dry_run: DryRun = False,
) -> None:
    """Make a data set: prompts, golden responses and rejects by dimension, verified; a stopped build goes on."""
    from rich.console import Console

    config = build_spec(spec, set_)
    if dry_run:
        _print_config(config)
        return
    console = Console(highlight=False)
    if plan_only:
        from dpeer.eval.build.plan import cost
        from dpeer.launcher.commands.evaluation import show_price

        costs = cost(config, limit)
        for row in costs.itertuples():
            tokens = f"about {row.prompt_tokens:,} tokens of prompts, at most {row.output_tokens:,} of answers"
            console.print(f"{row.model}: {row.calls:,} calls to make ({row.what}), {tokens}", soft_wrap=True)
        show_price(costs, "model", config.evaluation, console)
        console.print(
            f"That is with every text right at once. Each of up to {config.retries} retries, and each record that is "
            "tried anew from another seed, adds to it; `budget` holds over all.",
            soft_wrap=True,
        )
        return
    from dpeer.errors import ConfigError
    from dpeer.eval.build.build import build as run
    from dpeer.eval.build.build import refuse_nothing_made
    from dpeer.eval.build.files import write, write_review
    from dpeer.eval.build.summary import show

    if review and review.exists():
        raise ConfigError(f"{review} exists, and may hold answers; move it away, or name another file")
    with _stoppable():
        built = run(config, lambda: connected(config.evaluation), limit, retry_errors, answers or (), console)
        files = write(built)
    show(built, console)
    refuse_nothing_made(built)
    for path in files:
        typer.echo(path)
    if review:
        typer.echo(f"{write_review(built, rows, review)}: for people to fill; then `--answers {review}`")
    typer.echo(f"Next: dpeer data check {config.folder / 'parquet'}")


def build_spec(spec: str, overrides: list[str] | None) -> BuildSpec:
    from dpeer.config_io import load_section
    from dpeer.eval.build.spec import BuildSpec
    from dpeer.launcher.recipe import BUILD, recipe_path

    return load_section(BuildSpec, recipe_path(spec, BUILD), overrides or (), shipped=BUILD)
