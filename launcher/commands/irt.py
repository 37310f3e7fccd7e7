"""`dpeer irt`: abilities from ratings, and studies of how well they are recovered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dpeer.escape import markup

if TYPE_CHECKING:
    from dpeer.eval.irt.result import Result
    from dpeer.eval.irt.simulate import Spec
    from dpeer.eval.irt.types import Options, Ratings

app = typer.Typer(no_args_is_help=True)

Table = Annotated[Path, typer.Argument(help="Folder of ratings, or one CSV or Parquet file.", metavar="RATINGS")]
TERMS = {
    "halo": "halo",
    "length": "length",
    "order": "order",
    "own-family": "self_family",
    "own-model": "self_model",
    "comparison-scale": "comparison_scale",
}
Terms = Annotated[list[str] | None, typer.Option("--with", help=f"Add a term: {', '.join(TERMS)}; repeat.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Setting of the simulation, e.g. judges=5; repeat."),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the result; made if it is missing.")]


@app.command()
def fit(
    table: Table,
    output: Output = Path("runs/irt"),
    model: Annotated[str, typer.Option(help="gmfrm: each judge has a discrimination; rasch: all equal.")] = "gmfrm",
    base: Annotated[
        str | None, typer.Option(help="Model that the others are compared with; default: the first.")
    ] = None,
    dimension: Annotated[list[str] | None, typer.Option(help="Use this dimension; repeat. Default: all.")] = None,
    terms: Terms = None,
    response_effect: Annotated[
        bool | None,
        typer.Option(
            "--response-effect/--no-response-effect", help="Default: on where responses are rated repeatedly."
        ),
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
    anchor_sd: Annotated[
        float | None,
        typer.Option(
            min=0, help="Logits by which an anchor may move, 0: not at all. Default: its earlier posterior sd."
        ),
    ] = None,
    not_anchor: Annotated[
        list[str] | None, typer.Option(help="Judge or item of the earlier fit that is no anchor, e.g. drifted; repeat.")
    ] = None,
    scale: Annotated[
        str | None, typer.Option(help="Possible scores, e.g. 1-5. Default: from the least to the greatest given.")
    ] = None,
) -> None:
    """Estimate abilities, severities and difficulties; write draws, tables, figures and report.html."""
    from dpeer.eval.irt.types import Options

    options = Options(
        model=_model(model),
        response_effect=response_effect,
        chains=chains,
        warmup=warmup,
        draws=draws,
        threads=threads,
        seed=seed,
        approx=approx,
        anchors=_anchors(anchor, anchor_sd, tuple(not_anchor or ())),
        **_terms(terms),
    )
    console = Console(highlight=False)
    show(*run_fit(table, output, options, base, tuple(dimension or ()), console, _scale(scale)), console)


def run_fit(
    table: Path,
    output: Path,
    options: Options,
    base: str | None,
    dimensions: tuple[str, ...],
    console: Console,
    scale: tuple[int, ...] | None = None,
) -> tuple[Result, Path]:
    """Estimate with progress on the console; returns the result and its page in `output`."""
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

    def progress(what: str, done: float) -> None:
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
            started=started,
            warn=lambda text: console.print(f"[yellow]warning:[/] {markup(text)}", soft_wrap=True),
            progress=progress,
        )
    finally:
        if bar.live.is_started:
            bar.stop()
    return result, page_of(result, output)


def page_of(result: Result, output: Path) -> Path:
    from dpeer.eval.report.page import write_report

    return write_report(result, output, title=output.name, notes=tuple(result.facts.get("design_warnings", ())))


def show(result: Result, page: Path, console: Console) -> None:
    """The result on a terminal."""
    from dpeer.eval.irt.tables import claims, terminal

    for part in terminal(result):
        console.print(part)
    for claim in claims(result):
        console.print(f"• {markup(claim)}", soft_wrap=True)
    console.print(f"report      {markup(page)}", soft_wrap=True)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a fit.", metavar="FIT")],
    base: Annotated[
        str | None, typer.Option(help="Model that the others are compared with; default: the first.")
    ] = None,
    before: Annotated[
        Path | None, typer.Option(help="Folder of an earlier fit: show which judges and items have moved since.")
    ] = None,
) -> None:
    """Write tables, figures and report.html of a fit again."""
    from dpeer.eval.irt.design import check
    from dpeer.eval.irt.fit import load
    from dpeer.eval.irt.tables import tabulate

    posterior = load(folder)
    if posterior.facts.get("design_checked", True):  # fits of earlier versions did not keep the warnings
        warnings = [str(w) for w in check(posterior.ratings, posterior.options).warnings]
        posterior = replace(posterior, facts=posterior.facts | {"design_warnings": warnings})
    result = tabulate(posterior, base, load(before) if before else None)
    show(result, page_of(result, folder), Console(highlight=False))


@app.command()
def simulate(
    output: Annotated[Path, typer.Option("--output", "-o", help="Ratings table to write (Parquet).")],
    set_: Settings = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write simulated ratings and, beside them, the truth as JSON."""
    from dpeer.eval.irt.simulate import simulate as run
    from dpeer.files import write_json

    table, truth = run(_spec(set_), seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(output, index=False)
    known = output.with_suffix(".truth.json")
    write_json(known, {name: values.tolist() for name, values in truth.items()})
    typer.echo(f"{output}: {len(table):,} ratings; truth in {known}")


@app.command()
def recover(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the study; a stopped one goes on.")],
    set_: Settings = None,
    replications: Annotated[int, typer.Option(min=1)] = 20,
    model: Annotated[str, typer.Option(help="gmfrm or rasch.")] = "gmfrm",
    terms: Terms = None,
    response_effect: Annotated[bool | None, typer.Option("--response-effect/--no-response-effect")] = None,
    chains: Annotated[int, typer.Option(min=1)] = 4,
    warmup: Annotated[int, typer.Option(min=10)] = 500,
    draws: Annotated[int, typer.Option(min=10)] = 500,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Simulate and fit again and again: how well the intervals cover the truth."""
    from dpeer.eval.irt.recover import recover as run
    from dpeer.eval.irt.recover import recovery_table
    from dpeer.eval.irt.types import Options

    options = Options(
        model=_model(model),
        response_effect=response_effect,
        chains=chains,
        warmup=warmup,
        draws=draws,
        **_terms(terms),
    )
    console = Console(highlight=False)
    with Progress(TextColumn("replications"), BarColumn(20), TimeElapsedColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=replications)
        recovery = run(_spec(set_), options, replications, seed, output, lambda n, of: bar.update(task, completed=n))
    console.print(recovery_table(recovery))


def _spec(given: list[str] | None) -> Spec:
    """The simulation's settings, from NAME=VALUE pairs."""
    from dataclasses import fields

    import yaml

    from dpeer.errors import ConfigError
    from dpeer.eval.irt.simulate import Spec

    defaults = {field.name: field.default for field in fields(Spec)}
    values = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or name not in defaults:
            raise ConfigError(f"--set {text}: write it as NAME=VALUE with a name among {', '.join(defaults)}")
        read = yaml.safe_load(value)
        wanted = type(defaults[name])
        if wanted is float and isinstance(read, int) and not isinstance(read, bool):
            read = float(read)
        if name == "linked" and isinstance(read, list) and len(read) == 2:
            read = (int(read[0]), int(read[1]))
        elif not isinstance(read, wanted) or isinstance(read, bool):
            raise ConfigError(
                f"--set {text}: must be {'two numbers, [anchors, judges]' if name == 'linked' else 'a number'}"
            )
        values[name] = read
    return Spec(**values)


def _model(name: str) -> str:
    from dpeer.errors import ConfigError

    if name not in ("gmfrm", "rasch"):
        raise ConfigError(f"--model {name}: must be gmfrm or rasch")
    return name


def _terms(given: list[str] | None) -> dict[str, Any]:
    from dpeer.errors import ConfigError

    if unknown := [t for t in given or () if t not in TERMS]:
        raise ConfigError(f"--with {unknown[0]}: no such term; known: {', '.join(TERMS)}")
    return {TERMS[t]: True for t in given or ()}


def _anchors(folder: Path | None, sd: float | None, without: tuple[str, ...]) -> dict[str, object] | None:
    """All judges and items of the earlier fit but those `without`."""
    from dpeer.errors import ConfigError

    if folder is None:
        if sd is not None or without:
            raise ConfigError("--anchor-sd and --not-anchor need --anchor FIT, the earlier fit")
        return None
    from dpeer.eval.irt.anchors import anchors_from
    from dpeer.eval.irt.fit import load

    earlier = load(folder)
    judges, items = earlier.ratings.judges, earlier.ratings.items
    if unknown := sorted(set(without) - {*judges, *items}):
        raise ConfigError(f"--not-anchor {unknown[0]}: the earlier fit has no judge or item of that name")
    kept_judges, kept_items = ([name for name in names if name not in without] for names in (judges, items))
    return anchors_from(earlier, kept_judges, kept_items, sd)


def _scale(given: str | None) -> tuple[int, ...] | None:
    """E.g. 1-5."""
    import re

    from dpeer.errors import ConfigError

    if given is None:
        return None
    ends = re.fullmatch(r"(-?\d+)-(-?\d+)", given.strip())
    if not ends or int(ends[1]) >= int(ends[2]):
        raise ConfigError(f"--scale {given}: write the least and the greatest possible score, e.g. 1-5")
    return tuple(range(int(ends[1]), int(ends[2]) + 1))
