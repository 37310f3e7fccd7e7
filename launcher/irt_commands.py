"""`dpeer irt`: abilities from ratings, and studies of how well they are recovered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from eval.irt.types import Findings, Options, Posterior

app = typer.Typer(no_args_is_help=True)

Table = Annotated[Path, typer.Argument(help="Folder of ratings, or one CSV, JSONL or Parquet file.", metavar="RATINGS")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the result; made if it is missing.")]


@app.command()
def fit(
    table: Table,
    output: Output = Path("runs/irt"),
    model: Annotated[str, typer.Option(help="gmfrm: each judge has a discrimination; rasch: all equal.")] = "gmfrm",
    base: Annotated[str | None, typer.Option(help="Model that the others are compared with; default: the first.")] = None,
    dimension: Annotated[list[str] | None, typer.Option(help="Use this dimension; repeat. Default: all.")] = None,
    terms: Annotated[
        list[str] | None,
        typer.Option("--with", help="Add a term: halo, length, order, own-family, own-model; repeat."),
    ] = None,
    response_effect: Annotated[
        bool | None,
        typer.Option("--response-effect/--no-response-effect", help="Default: on where responses are rated repeatedly."),
    ] = None,
    chains: Annotated[int, typer.Option(min=1)] = 4,
    warmup: Annotated[int, typer.Option(min=10, help="Warm-up iterations per chain.")] = 1000,
    draws: Annotated[int, typer.Option(min=10, help="Draws per chain after warm-up.")] = 1000,
    threads: Annotated[int, typer.Option(min=1, help="Threads per chain; useful for large data on many cores.")] = 1,
    seed: Annotated[int, typer.Option(min=1)] = 1,
    approx: Annotated[bool, typer.Option("--approx", help="A short run, labelled approximate; no claims.")] = False,
    anchor: Annotated[
        Path | None, typer.Option(help="Folder of an earlier fit: hold its judges and items in place.", metavar="FIT")
    ] = None,
) -> None:
    """Estimate abilities, severities and difficulties; write draws, tables, figures and report.html."""
    from dpeer.errors import ConfigError
    from eval.irt.types import Options

    flags = {"halo": "halo", "length": "length", "order": "order", "own-family": "self_family", "own-model": "self_model"}
    if unknown := [t for t in terms or () if t not in flags]:
        raise ConfigError(f"--with {unknown[0]}: no such term; known: {', '.join(flags)}")
    if model not in ("gmfrm", "rasch"):
        raise ConfigError(f"--model {model}: must be gmfrm or rasch")
    options = Options(
        model=model,
        response_effect=response_effect,
        chains=chains,
        warmup=warmup,
        draws=draws,
        threads=threads,
        seed=seed,
        approx=approx,
        anchors=_anchors(anchor),
        **{flags[t]: True for t in terms or ()},
    )
    run_fit(table, output, options, base, tuple(dimension or ()), before=anchor)


def run_fit(
    table: Path,
    output: Path,
    options: Options,
    base: str | None = None,
    dimensions: tuple[str, ...] = (),
    before: Path | None = None,
    console: Console | None = None,
) -> Findings:
    """Encode, check the design, sample, write everything into `output`, and show the tables."""
    from eval.irt.design import check
    from eval.irt.encode import encode
    from eval.irt.fit import fit as sample
    from eval.irt.fit import save

    console = console or Console(highlight=False)
    ratings = encode(table, dimensions or None)
    console.print(
        f"{len(ratings):,} ratings: {len(ratings.models)} models, {len(ratings.items)} items, "
        f"{len(ratings.judges)} judges, {len(ratings.dimensions)} dimensions"
    )
    report = check(ratings, options)
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/] {escape(warning.text)}", soft_wrap=True)
    bar = Progress(TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn(), TimeRemainingColumn(), console=console)
    with bar:
        task = bar.add_task("sampling", total=1.0)
        posterior = sample(ratings, options, lambda what, done: bar.update(task, description=what, completed=done))
    save(posterior, output)
    return conclude(posterior, output, base, tuple(w.text for w in report.warnings), console)


def conclude(
    posterior: Posterior, output: Path, base: str | None, notes: tuple[str, ...], console: Console
) -> Findings:
    """Tables, page and terminal summary of a fit."""
    from eval.irt.tables import claims, findings, terminal
    from eval.report.page import write_report

    found = findings(posterior, base)
    page = write_report(found, output, title=output.name, notes=notes)
    for part in terminal(found):
        console.print(part)
    for claim in claims(found):
        console.print(f"• {escape(claim)}", soft_wrap=True)
    console.print(f"report      {page}", soft_wrap=True)
    return found


def _anchors(folder: Path | None) -> dict[str, object] | None:
    if folder is None:
        return None
    from eval.irt.anchors import anchors_from
    from eval.irt.fit import load

    return anchors_from(load(folder))
