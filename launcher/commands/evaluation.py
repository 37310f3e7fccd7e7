"""`dpeer generate`, `dpeer judge` and `dpeer ratings`: from models and prompts to a table of ratings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from dpeer.escape import markup
from dpeer.launcher.commands import reading

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import pandas as pd

    from dpeer.config import Section
    from dpeer.eval.config import EvalConfig
    from dpeer.eval.plan import Plan


class _WithBenchmarks(TyperGroup):
    """`import`, and a command per registered benchmark; the registry is read only when this group is asked."""

    def list_commands(self, ctx: Any) -> list[str]:
        from dpeer.eval.elsewhere.benchmarks import BENCHMARKS

        return [*super().list_commands(ctx), *BENCHMARKS.names()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from dpeer.eval.elsewhere.benchmarks import BENCHMARKS

        known = super().get_command(ctx, cmd_name)
        return _benchmark(cmd_name) if known is None and cmd_name in BENCHMARKS.names() else known


ratings = typer.Typer(cls=_WithBenchmarks, no_args_is_help=True)

Recipe = Annotated[str, typer.Argument(help="Name of a shipped evaluation recipe, or the path of a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. design.kind=linked; repeat.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and stop.")]
RetryErrors = Annotated[bool, typer.Option("--retry-errors", help="Ask again for rows that hold no answer.")]


def generate(
    recipe: Recipe,
    set_: Overrides = None,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Print calls, tokens and what endpoints cost, and stop.")
    ] = False,
    retry_errors: RetryErrors = False,
    dry_run: DryRun = False,
) -> None:
    """Let the models of an evaluation recipe answer its prompts; a stopped run goes on where it was."""
    config = evaluation_config(recipe, set_)
    if dry_run:
        _print_config(config)
        return
    if plan_only:
        from dpeer.eval.generate import cost

        costs = cost(config)
        show_responses(costs)
        show_price(costs, "model", config, Console(highlight=False))
        return
    from dpeer.eval.generate import generate as run

    with _stoppable():
        typer.echo(run(config, lambda: connected(config), retry_errors))


def show_responses(cost: pd.DataFrame) -> None:
    console = Console(highlight=False)
    for row in cost.itertuples():
        tokens = f"about {row.prompt_tokens:,} tokens of prompts, at most {row.output_tokens:,} of answers"
        console.print(f"{markup(str(row.model))}: {row.calls:,} responses to make, {tokens}")


def judge(
    recipe: Recipe,
    set_: Overrides = None,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Print calls, tokens and time, check the design, and stop.")
    ] = False,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=1, help="With --plan-only: prompt tokens per second of all replicas together.")
    ] = None,
    retry_errors: RetryErrors = False,
    dry_run: DryRun = False,
) -> None:
    """Let the judges of an evaluation recipe rate the responses; a stopped run goes on where it was."""
    config = evaluation_config(recipe, set_)
    if dry_run:
        _print_config(config)
    elif plan_only:
        from dpeer.eval.judge import cost
        from dpeer.eval.plan import plan
        from dpeer.launcher.commands.eval_plan import show_precision

        planned = plan(config)
        show_plan(planned, cost(config, planned, tokens_per_second), config)
        show_precision(planned, config, Console(highlight=False))
        if config.judging.until:
            from dpeer.eval.adaptive.rounds import first_round

            first = first_round(config, planned, config.judging.until)
            typer.echo(f"That is the most that the rounds may ask. The first: {len(first.todo):,} ratings.")
            show_price(cost(config, first, tokens_per_second), "judge", config, Console(highlight=False))
    else:
        from dpeer.eval.judge import judge as run

        with _stoppable():
            table = run(config, lambda: connected(config), retry_errors)
        typer.echo(table)
        names = [model.name for model in config.models]
        base = f" --base {config.base or names[0]}" if names else ""
        typer.echo(f"Next: dpeer irt fit {table} --output {config.folder / 'irt'}{base}")


@ratings.command("import")
def import_(
    path: Annotated[
        Path, typer.Argument(help="CSV (any delimiter), Excel, JSONL or Parquet file with ratings made elsewhere.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Ratings table to write (Parquet).")],
    map_: reading.Map = None,
    label: reading.Label = None,
    constant: reading.Constant = None,
    human: reading.Human = None,
    family: reading.Family = None,
    half_points: reading.HalfPoints = False,
    missing: reading.Missing = None,
    keep_copies: reading.KeepCopies = False,
) -> None:
    """Bring ratings made elsewhere, by people or programs, into the form that `dpeer irt fit` reads."""
    _check_output(output)
    given = reading.options(map_, label, constant, human, family, missing, half_points, keep_copies)
    command = ["dpeer", "ratings", "import", str(path), "-o", str(output)]
    _write_ratings(reading.read(path, given, command), output)


def _benchmark(name: str) -> Any:
    """The command that imports a registered benchmark; its help is the first line of the function's docstring."""
    from dpeer.eval.elsewhere.benchmarks import BENCHMARKS

    command = typer.Typer(add_completion=False)

    @command.command(name, help=(BENCHMARKS[name].__doc__ or "").partition("\n")[0])
    def import_benchmark(
        source: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder or file as the benchmark publishes it.")],
        output: Annotated[Path, typer.Option("--output", "-o", help="Ratings table to write (Parquet).")],
    ) -> None:
        _check_output(output)
        _write_ratings(BENCHMARKS[name](source), output)

    return typer.main.get_command(command)


def _check_output(output: Path) -> None:
    from dpeer.errors import ConfigError

    if output.suffix != ".parquet":
        raise ConfigError(f"--output {output}: ratings are written as Parquet; give a name that ends in .parquet")


def _write_ratings(table: pd.DataFrame, output: Path) -> None:
    from dpeer.eval.store.parts import write_table

    write_table(output, table)
    counts = ", ".join(f"{count:,} {status}" for status, count in table["status"].value_counts().items())
    again = int((table["repeat"] > 0).sum())
    repeats = f"; {again:,} of them repeats of a rating by the same judge" if again else ""
    others = table["other_model"].dropna()
    found = {name: table[name].nunique() for name in ("item", "judge", "dimension")}
    found = {"model": len({*table["model"], *others})} | found
    sizes = (f"{count:,} {name}{'s' * (count != 1)}" for name, count in found.items())
    kind = "comparisons" if len(others) else "ratings"
    typer.echo(f"{output}: {len(table):,} {kind} ({counts}): {', '.join(sizes)}{repeats}")


def evaluation_config(recipe: str, overrides: list[str] | None) -> EvalConfig:
    from dpeer.config_io import load_section
    from dpeer.eval.config import EvalConfig
    from dpeer.launcher.recipe import EVALUATION, recipe_path

    return load_section(EvalConfig, recipe_path(recipe, EVALUATION), overrides or (), shipped=EVALUATION)


def _print_config(config: Section) -> None:
    from dpeer.config_io import resolved_yaml

    typer.echo(resolved_yaml(config), nl=False)


def _stoppable() -> AbstractContextManager[Any]:
    """Signals end the command with their exit code, once what was answered is on disk."""
    from dpeer.launcher.signals import Signals

    return Signals(again="Every part that was written stays; the same command goes on from there.")


def connected(config: EvalConfig) -> AbstractContextManager[None]:
    from dpeer.launcher.cluster import connect

    return connect(config.farm.address)


def show_plan(planned: Plan, cost: pd.DataFrame, config: EvalConfig) -> None:
    console = Console(highlight=False)
    for note in planned.notes:
        console.print(f"[yellow]note:[/] {markup(note)}", soft_wrap=True)
    table = Table(
        "judge", title=f"{len(planned.rows):,} ratings planned, {len(planned.todo):,} to make", title_justify="left"
    )
    for name in ("calls", "prompt tokens", "of these shared", "time"):
        table.add_column(name, justify="right")
    for row in cost.itertuples():
        about = "" if row.exact else "about "
        tokens = [f"{about}{value:,}" for value in (row.prompt_tokens, row.shared_tokens)]
        table.add_row(row.judge, f"{row.calls:,}", *tokens, _duration(float(row.seconds)))
    console.print(table)
    if cost["seconds"].isna().any():
        console.print("Time is unknown before a first run; --tokens-per-second N gives an estimate.")
    show_price(cost, "judge", config, console)


def show_price(cost: pd.DataFrame, by: str, config: EvalConfig, console: Console) -> None:
    """What calls cost at most. Columns: `by`, calls, price."""
    from dpeer.eval.prices import load_prices, money

    currency = load_prices(config.prices).currency
    for name in cost.loc[cost["price"].isna() & (cost["calls"] > 0), by]:
        console.print(f"The price of {markup(name)} is not known: give it in a file of prices (`prices:`).")
    if total := cost["price"].sum():
        each = ", ".join(
            f"{markup(n)} {money(p, currency)}" for n, p in cost[[by, "price"]].itertuples(False, None) if p > 0
        )
        limit = "" if config.budget is None else f"; the budget is {money(config.budget, currency)}"
        console.print(f"Price: at most about {money(total, currency)} ({each}){limit}.", soft_wrap=True)


def _duration(seconds: float) -> str:
    if seconds != seconds:
        return "unknown"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
