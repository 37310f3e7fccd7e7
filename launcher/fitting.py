"""A fit with progress on the console, and its page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dpeer.escape import markup

if TYPE_CHECKING:
    import pandas as pd

    from dpeer.eval.irt.result import Result
    from dpeer.eval.irt.types import Options, Ratings


def run_fit(
    table: Path | pd.DataFrame,
    output: Path,
    options: Options,
    base: str | None,
    dimensions: tuple[str, ...],
    console: Console,
    scale: tuple[int, ...] | None = None,
    **more: Any,
) -> tuple[Result, Path]:
    """Estimate with progress on the console and `more` options of `estimate`; returns the result and its page."""
    from dpeer.eval.irt.estimation import estimate

    def started(ratings: Ratings) -> None:
        compared = f", {n:,} comparisons" if (n := len(ratings.comparisons)) else ""
        console.print(
            f"{len(ratings):,} ratings{compared}: {len(ratings.models)} models, {len(ratings.items)} items, "
            f"{len(ratings.judges)} judges, {len(ratings.dimensions)} dimensions"
        )

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn(), TimeRemainingColumn(), console=console
    )
    task = bar.add_task("sampling", total=1.0)
    told = set[str]()

    def progress(what: str, done: float) -> None:
        if what not in told and not console.is_terminal:  # a log has no bar, and shall say what is expected
            told.add(what)
            console.print(markup(what), soft_wrap=True)
        bar.start()
        bar.update(task, description=markup(what), completed=done)

    try:
        result = estimate(
            table,
            base,
            options=options,
            dimensions=dimensions,
            scale=scale,
            folder=output,
            **more,
            started=started,
            warn=lambda text: console.print(f"[yellow]warning:[/] {markup(text)}", soft_wrap=True),
            progress=progress,
        )
    finally:
        if bar.live.is_started:
            bar.stop()
    return result, page_of(result, output, _rounds(table, result))


def _rounds(table: Path | pd.DataFrame, result: Result) -> tuple[str, ...]:
    """What adaptive judging saved, where the table is the one that it made."""
    from dpeer.eval.adaptive.summary import savings
    from dpeer.eval.spending import read_rounds

    if not isinstance(table, Path):
        return ()
    facts = read_rounds(table.parent / "ratings") if table.name == "ratings.parquet" else None
    made = result.posterior.ratings if result.posterior else None
    if not facts or not made or facts["ratings"] != sum(made.statuses.values()):
        return ()
    return (savings(facts),)


def page_of(result: Result, output: Path, notes: tuple[str, ...] = ()) -> Path:
    from dpeer.eval.report.page import write_report

    warnings = tuple(result.facts.get("design_warnings", ()))
    return write_report(result, output, title=output.name, notes=(*notes, *warnings))
