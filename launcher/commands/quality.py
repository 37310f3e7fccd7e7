"""`dpeer data quality`: which records hold, what their surface gives away, what repeats."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpeer.launcher.commands.data import Mapped, Source, _map
from dpeer.launcher.commands.evaluation import Overrides, RetryErrors, _stoppable

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from dpeer.config_sources import Map
    from dpeer.data.schema import DataSet
    from dpeer.eval.config import EvalConfig
    from dpeer.eval.quality.quality import Quality
    from dpeer.eval.quality.rated import Rated

SHOWN = 8
WIDTH = 120  # of tables where there is no terminal


def quality(
    source: Source,
    judges: Annotated[
        str | None,
        typer.Option(
            help="Evaluation recipe whose judges rate every response on every active dimension: name or file."
        ),
    ] = None,
    ratings: Annotated[
        Path | None,
        typer.Option(help="Ratings made elsewhere: a table of record, response, dimension, judge and score."),
    ] = None,
    heldout: Annotated[str | None, typer.Option(help="Held-out data; default: the test split of SOURCE.")] = None,
    dual: Annotated[str | None, typer.Option(help="Records of the dual split.")] = None,
    map_: Mapped = None,
    review: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write a sheet that people fill; needs ratings.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of that sheet.")] = 200,
    answers: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A sheet that a person has filled; repeat.")
    ] = None,
    sure: Annotated[float, typer.Option(min=0.5, max=0.999, help="Probability from which on a claim holds.")] = 0.9,
    limit: Annotated[
        float, typer.Option(min=0, max=1, help="Share of violated edges above which a cell is named.")
    ] = 0.1,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="For page, JSON and tables; default: that of the ratings."
        ),
    ] = None,
    set_: Overrides = None,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Print calls, tokens and time, and stop.")] = False,
    retry_errors: RetryErrors = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON; needs a folder.")] = False,
) -> None:
    """Say which records hold and why others do not, what their surface gives away, and which texts nearly repeat."""
    from rich.console import Console

    from dpeer.eval.quality.given import all_texts, from_file
    from dpeer.eval.quality.quality import quality as look
    from dpeer.eval.quality.review import read_sheet, sheet, with_texts, write_sheet
    from dpeer.eval.report.quality import write_page

    _refuse(judges, ratings, review, answers, output, as_json, plan_only or retry_errors or bool(set_))
    splits = _splits(source, heldout, dual, _map(map_))
    made = all_texts(splits)
    console = Console(highlight=False, stderr=as_json)
    if not console.is_terminal:
        console.width = WIDTH
    given: Rated | None = None
    meaning: dict[str, str] = {}
    if judges:
        config, dimensions, meaning = _config(judges, set_, splits)
        if plan_only:
            _show_plan(config, made, dimensions)
            return
        given = _asked(config, made, dimensions, retry_errors, console)
        output = output or config.folder
    elif ratings:
        given = from_file(ratings, made)
    said = []
    if given is not None and answers:
        units = with_texts(given.units[~given.known], made)
        said = [read_sheet(path, units) for path in answers]
    found = look(source, splits, given, said, sure, limit, dict(zip(made["record"], made["row"], strict=True)))
    _tell(console, found)
    if review and found.verified is not None:
        console.print(
            f"{write_sheet(sheet(found.verified, made, meaning, rows), review)}: for people to fill", markup=False
        )
    if output is not None:
        path, page = found.write(output), write_page(found, output / "quality.html")
        if as_json:
            typer.echo(path.read_text(), nl=False)
        else:
            console.print(f"{path}\n{page}", soft_wrap=True, markup=False)


def _refuse(
    judges: str | None,
    ratings: Path | None,
    review: Path | None,
    answers: list[Path] | None,
    output: Path | None,
    as_json: bool,
    about_judges: bool,
) -> None:
    """What cannot go together, before anything is asked."""
    from dpeer.errors import ConfigError

    if judges and ratings:
        raise ConfigError("--judges makes ratings and --ratings brings some; give one of them")
    if (review or answers) and not (judges or ratings):
        raise ConfigError("people check what verifiers say: give --judges or --ratings too")
    if about_judges and not judges:
        raise ConfigError(
            "--plan-only, --retry-errors and --set are about what --judges asks; give a recipe with judges"
        )
    if as_json and not (output or judges):
        raise ConfigError("--json prints a file of the folder of results; name a folder with -o")
    if review and review.exists():
        raise ConfigError(f"{review} exists, and may hold answers; move it away, or name another file")


def _splits(source: str, heldout: str | None, dual: str | None, map: Map | None) -> dict[str, DataSet]:
    """Training records, and the others that are given or that the source itself has."""
    from dpeer.data.load import load, splits

    found = {"train": load(source, "train", map=map)}
    dimensions = found["train"].dimensions
    own = splits(source)
    for name, given in (("dual", dual), ("test", heldout)):
        if given is not None or name in own:
            found[name] = load(given or source, name, dimensions, map)
    return found


def _config(
    judges: str, overrides: list[str] | None, splits: dict[str, DataSet]
) -> tuple[EvalConfig, tuple[str, ...], dict[str, str]]:
    """The recipe, the dimensions that are rated, and what each is."""
    from dpeer.eval.audit.plan import audit_config, only_dimensions
    from dpeer.eval.questions.rubric import load_rubric
    from dpeer.launcher.commands.evaluation import evaluation_config

    config, reduced = only_dimensions(audit_config(evaluation_config(judges, overrides), "quality"), splits)
    dimensions = reduced["train"].dimensions
    rubric = load_rubric(config.judging.rubric)
    return config, dimensions, {d: rubric.dimensions[d].description for d in dimensions}


def _show_plan(config: EvalConfig, made: pd.DataFrame, dimensions: tuple[str, ...]) -> None:
    from dpeer.eval.judge import cost
    from dpeer.eval.quality.given import quality_plan
    from dpeer.launcher.commands.evaluation import show_plan

    planned = quality_plan(config, made, dimensions)
    show_plan(planned, cost(config, planned), config)


def _asked(
    config: EvalConfig, made: pd.DataFrame, dimensions: tuple[str, ...], retry_errors: bool, console: Console
) -> Rated:
    """Ratings by the judges of the recipe: those that are missing are made."""
    import pandas as pd

    from dpeer.eval.judge import rate
    from dpeer.eval.quality.given import from_judges, quality_plan
    from dpeer.launcher.commands.evaluation import connected

    plan = partial(quality_plan, made=made, dimensions=dimensions)
    with _stoppable():
        table = rate(config, lambda: connected(config), retry_errors, console, plan)
    return from_judges(config, made, dimensions, pd.read_parquet(table))


def _tell(console: Console, found: Quality) -> None:
    """The finding, and of each part the first lines."""
    from rich.table import Table

    from dpeer.escape import markup
    from dpeer.eval.quality.reasons import HOLDS
    from dpeer.eval.quality.repeats import counted
    from dpeer.eval.quality.surface import FORM, sentence
    from dpeer.report.text import number

    console.print(f"[bold]{markup(found.finding())}[/]", soft_wrap=True)
    if found.verified:
        for note in found.verified.notes:
            console.print(f"[yellow]{markup(note)}[/]", soft_wrap=True)
        table = Table(
            "verifier", "dimension", "golden above reject", "mark", "more lenient by", box=None, pad_edge=False
        )
        for v in found.verified.verifiers.itertuples():
            above = f"{100 * v.separates:.0f} % of {v.n}" if v.n else "none"
            table.add_row(markup(v.judge), markup(v.dimension), above, number(v.mark, 2), number(v.leniency, 2))
        console.print(table)
        bad = found.verified.records[found.verified.records["status"] != HOLDS]
        for r in bad.head(SHOWN).itertuples():
            console.print(f"[bold]{markup(found.rows.get(r.record, r.record))}[/] {markup(r.reason)}", soft_wrap=True)
        if len(bad) > SHOWN:
            console.print(f"and {len(bad) - SHOWN:,} more")
        for line in found.over[:SHOWN]:
            console.print(markup(line), soft_wrap=True)
    for s in found.surfaces:
        if s.sees == FORM:
            console.print(markup(sentence(s)), soft_wrap=True)
    for kind in ("prompts", "responses"):
        for row in counted(getattr(found, kind)).itertuples():
            console.print(f"{row.texts:,} {kind} of {row.repeated} nearly repeat one of {row.kept}")
