"""`dpeer data audit`: do judges agree with the order that a data set claims?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dpeer.launcher.commands.data import Mapped, _map
from dpeer.launcher.commands.evaluation import DryRun, Overrides, RetryErrors, _stoppable

if TYPE_CHECKING:
    from rich.console import Console

    from dpeer.config_sources import Map
    from dpeer.data.schema import DataSet
    from dpeer.eval.audit.audit import Audit

SHOWN = 5
WIDTH = 120  # of tables where there is no terminal


def audit(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Data sets, as `dpeer data check` takes them.")
    ],
    judges: Annotated[str, typer.Option(help="Evaluation recipe whose judges and rubric are used: a name or a file.")],
    edges: Annotated[
        int | None,
        typer.Option(min=1, help="Edges per source and dimension, chosen by the recipe's seed; default: all."),
    ] = None,
    map_: Mapped = None,
    split: Annotated[str, typer.Option(help="Split of a folder or hub id.")] = "train",
    tie: Annotated[
        float | None, typer.Option(min=0, help="Ratings less than this apart are a tie, in points; default 0.25.")
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Exit with 1 when the interval of a rate without chance errors lies above this share, e.g. 0.1; needs "
            "two judges or judging.repeats=2.",
        ),
    ] = None,
    set_: Overrides = None,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Print calls, tokens and time, and stop.")] = False,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=1, help="With --plan-only: prompt tokens per second of all replicas together.")
    ] = None,
    retry_errors: RetryErrors = False,
    dry_run: DryRun = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Let judges rate both ends of every edge, and count how often they contradict it; a stopped audit goes on."""
    from rich.console import Console

    from dpeer.config_io import resolved_yaml
    from dpeer.errors import ConfigError
    from dpeer.eval.audit.audit import TIE
    from dpeer.eval.audit.audit import audit as run
    from dpeer.eval.audit.pairs import pairs
    from dpeer.eval.audit.plan import audit_config, audit_plan, only_dimensions
    from dpeer.eval.judge import cost
    from dpeer.eval.report.order_audit import write_page
    from dpeer.launcher.commands.evaluation import connected, evaluation_config, show_plan

    recipe = audit_config(evaluation_config(judges, set_))
    if dry_run:
        typer.echo(resolved_yaml(recipe), nl=False)
        return
    if limit is not None and (len(recipe.judges), recipe.judging.repeats) == (1, 1):
        raise ConfigError(
            "--limit looks at the rate without chance errors, and one judge that rates once gives none: its own errors "
            "are in the rate. Add a second judge, set judging.repeats=2, or leave --limit out."
        )
    config, data = only_dimensions(recipe, _loaded(sources, split, _map(map_)))
    compared = pairs(data, edges, config.seed)
    if plan_only:
        planned = audit_plan(config, compared)
        show_plan(planned, cost(config, planned, tokens_per_second), config)
        return
    console = Console(highlight=False, stderr=as_json)
    if not console.is_terminal:
        console.width = WIDTH
    with _stoppable():
        found = run(config, compared, lambda: connected(config), TIE if tie is None else tie, retry_errors, console)
    table = found.write(config.folder / "audit.json")
    page = write_page(found, config.folder / "audit.html")
    if as_json:
        typer.echo(table.read_text(), nl=False)
    else:
        show(console, found)
        console.print(f"{table}\n{page}", soft_wrap=True)
    raise typer.Exit(1 if limit is not None and found.exceeds(limit) else 0)


def _loaded(sources: list[str], split: str, map: Map | None) -> dict[str, DataSet]:
    from dpeer.data.load import load
    from dpeer.errors import DataError

    if twice := sorted({s for s in sources if sources.count(s) > 1}):
        raise DataError(f"{twice[0]} is given twice; name each source once")
    return {source: load(source, split, map=map) for source in sources}


def show(console: Console, found: Audit) -> None:
    """Rates per source and dimension, and the first of the worst edges."""
    from rich.table import Table

    from dpeer.escape import markup
    from dpeer.eval.report.order_audit import finding, shown
    from dpeer.report.text import number, percent

    console.print(f"[bold]{markup(finding(found))}[/]", soft_wrap=True)
    several = len({g.source for g in found.groups}) > 1
    table = Table(*(["source"] if several else []), "dimension", box=None, pad_edge=False)
    for name in ("edges", "upheld", "tied", "violated", "rate as judged", "without chance errors", "judges divided"):
        table.add_column(name, justify="right")
    for g in found.groups:
        counts = [str(n) for n in (g.edges, g.upheld, g.tied, g.violated)]
        cells = [*counts, shown(g.rate), shown(g.corrected), percent(g.contradicted)]
        table.add_row(*([markup(g.source)] if several else []), markup(g.dimension), *cells)
    console.print(table)
    if unrated := sum(g.unrated for g in found.groups):
        console.print(f"[yellow]{unrated} edges have no usable ratings of both ends and are left out.[/]")
    console.print(found.assumption, soft_wrap=True)
    for note in found.notes:
        console.print(f"[yellow]{markup(note)}[/]", soft_wrap=True)
    for w in found.worst[:SHOWN]:
        console.print(
            f"[bold]{markup(w.row)}[/] {markup(w.dimension)}: {number(w.excess, 2)} points, {w.against} of {w.judges} "
            f"judges against\n  better: {markup(w.better)}\n  worse:  {markup(w.worse)}",
            soft_wrap=True,
        )
