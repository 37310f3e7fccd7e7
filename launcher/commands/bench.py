"""`dpeer bench`: sycophancy, consistency and refusals of models, by published benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dpeer.escape import markup
from dpeer.launcher.commands.evaluation import DryRun, RetryErrors, _stoppable, show_price, show_responses

if TYPE_CHECKING:
    from dpeer.eval.bench.config import BenchConfig
    from dpeer.eval.bench.run import Found

WIDTH = 120  # of tables where there is no terminal


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="Benchmarks; default: those of --config. --list shows all."),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--models", metavar="NAME=PATH", help="A model under test, the base first: folder or hub id; repeat."
        ),
    ] = None,
    judges: Annotated[
        list[str] | None, typer.Option("--judges", metavar="NAME=PATH", help="A judge model; repeat for several.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file with models, judges, engines and benchmarks.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="NAME=SOURCE",
            help="Data of a benchmark: file, folder, hub id, or `sample` for a few rows that come along; repeat.",
        ),
    ] = None,
    ratings: Annotated[
        list[str] | None,
        typer.Option(
            "--ratings", metavar="NAME=FILE", help="Ratings made elsewhere, in place of models and judges; repeat."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items of each benchmark, chosen by the seed.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. generation.max_tokens=256; repeat."),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Print the benchmarks, their papers and data, and stop.")
    ] = False,
    export: Annotated[
        str | None,
        typer.Option(
            "--export", metavar="HARNESS", help="Write tasks of `inspect` or `lm-eval` with the items, and stop."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the tasks that --export writes.")] = None,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Print items, calls and price, and stop.")] = False,
    retry_errors: RetryErrors = False,
    dry_run: DryRun = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Ask models the items of benchmarks, score the answers by rules or judges; a stopped run goes on."""
    from dpeer.config_io import resolved_yaml

    if list_:
        _list()
        return
    cfg = bench_config(names or (), models or (), judges or (), config, data or (), ratings or (), limit, set_ or ())
    if dry_run:
        typer.echo(resolved_yaml(cfg), nl=False)
        return
    if plan_only:
        _plan(cfg)
        return
    if export is not None or out is not None:
        _export(cfg, export, out)
        return
    from dpeer.eval.bench.run import bench as run
    from dpeer.eval.report.bench import write_page
    from dpeer.launcher.cluster import connect

    console = Console(highlight=False, stderr=as_json)
    if not console.is_terminal:
        console.width = WIDTH
    with _stoppable():
        found = run(cfg, lambda: connect(cfg.farm.address), retry_errors, console)
    written = found.write(cfg.folder)
    page = write_page(found, cfg.folder / "bench.html")
    if as_json:
        typer.echo(written.read_text(), nl=False)
    else:
        show(found, console)
        console.print(f"{written}\n{page}", soft_wrap=True)


def bench_config(
    names: Sequence[str],
    models: Sequence[str],
    judges: Sequence[str],
    path: Path | None,
    data: Sequence[str],
    ratings: Sequence[str],
    limit: int | None,
    overrides: Sequence[str],
) -> BenchConfig:
    """The config that a command line means: a file, then options, then overrides. Only benchmarks named run."""
    from dpeer.config_io import load_section, parsed_section
    from dpeer.errors import ConfigError
    from dpeer.eval.bench.benchmark import BENCHMARKS
    from dpeer.eval.bench.config import BenchConfig

    for name in names:
        BENCHMARKS[name]
    chosen: dict[str, dict[str, str]] = {name: {} for name in names}
    for kind, given in (("data", data), ("ratings", ratings)):
        for name, value in _named(given, f"--{kind}").items():
            if names and name not in names:
                raise ConfigError(
                    f"--{kind} {name}={value}: {name} is not among the benchmarks named: {', '.join(names)}"
                )
            chosen.setdefault(name, {})[kind] = value
    changes: dict[str, Any] = {"benchmarks": chosen} if chosen else {}
    for kind, given in (("models", models), ("judges", judges)):
        if given:
            changes[kind] = [{"name": n, "path": p} for n, p in _named(given, f"--{kind}").items()]
    if limit is not None:
        changes["limit"] = limit
    if path is None:
        return parsed_section(BenchConfig, changes, overrides, "--set")
    config = load_section(BenchConfig, path, overrides, changes)
    return config.model_copy(
        update={"benchmarks": {name: config.benchmarks[name] for name in names or config.benchmarks}}
    )


def _named(given: Sequence[str], option: str) -> dict[str, str]:
    from dpeer.errors import ConfigError

    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise ConfigError(f"{option} {text}: write it as NAME={'FILE' if option == '--ratings' else 'PATH'}")
        if name in found:
            raise ConfigError(f"{option}: {name} is given twice")
        found[name] = value
    return found


def _list() -> None:
    from dpeer.eval.bench.benchmark import BENCHMARKS

    console = Console(highlight=False)
    for name in BENCHMARKS.names():
        benchmark = BENCHMARKS[name]
        how = (
            "judges" + f" or {benchmark.rules}" * bool(benchmark.rules)
            if benchmark.rubric
            else "a rule; needs no judge"
        )
        console.print(f"[bold]{markup(name)}[/]  {markup(benchmark.title)}: scored by {markup(how)}", soft_wrap=True)
        console.print(
            f"    {markup(benchmark.source)}\n    data: {markup(benchmark.data or 'a file or folder')}", soft_wrap=True
        )


def _export(cfg: BenchConfig, harness: str | None, folder: Path | None) -> None:
    from dpeer.errors import ConfigError
    from dpeer.eval.bench.benchmark import BENCHMARKS
    from dpeer.eval.bench.export.write import HARNESSES, export

    known = next((h for h in HARNESSES if h == harness), None)
    if known is None or folder is None:
        said = "no harness" if harness is None else f"--export {harness}"
        raise ConfigError(
            f"{said} and {'no folder' if folder is None else f'-o {folder}'}: give both, the harness as one of "
            f"{', '.join(HARNESSES)}"
        )
    if not cfg.benchmarks:
        raise ConfigError(f"no benchmark is named; there are {', '.join(BENCHMARKS.names())}")
    for path in export(cfg, known, folder):
        typer.echo(path)


def _plan(cfg: BenchConfig) -> None:
    import pandas as pd

    from dpeer.eval.bench.forecast import forecast

    found, evaluation, console = forecast(cfg), cfg.evaluation("answers", budget=cfg.budget), Console(highlight=False)
    for line in found.lines:
        typer.echo(line)
    if found.answers.empty:
        return
    for what, costs in (("First answers:", found.answers), ("In view of these, at most:", found.more)):
        if len(costs):
            typer.echo(what)
            show_responses(costs)
    if len(found.ratings):
        typer.echo("Ratings, at most; those on disk are not taken off:")
    for row in found.ratings.itertuples():
        said = f"{row.benchmark}, {row.judge}: {row.calls:,} ratings, about {row.prompt_tokens:,} tokens of prompts"
        console.print(markup(said), soft_wrap=True)
    ratings = found.ratings.rename(columns={"judge": "model"})
    every = pd.concat([found.answers, found.more, ratings])[["model", "calls", "price"]]
    total = every.groupby("model", sort=False).sum(min_count=1).reset_index()
    show_price(total, "model", evaluation, console)


def show(found: Found, console: Console) -> None:
    """The table of the two failures, and what is to be known of it."""
    from rich.table import Table

    from dpeer.eval.bench.benchmark import COLUMNS, GOOD
    from dpeer.eval.report.order_audit import shown

    table = Table("model", title="Both failures, by our protocol (not the paper's)", title_justify="left")
    for column in COLUMNS:
        table.add_column(f"{column}\n({GOOD[column]} is good)", justify="right")
    for model in found.models:
        table.add_row(markup(model), *(shown(found.column(model, column)[0]) for column in COLUMNS))
    console.print(table)
    for note in found.notes:
        console.print(f"[yellow]note:[/] {markup(note)}", soft_wrap=True)
