"""`dpeer data`: look at a data set and check it before a run does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from dpeer.escape import markup

if TYPE_CHECKING:
    from dpeer.config import Config
    from dpeer.config_sources import Map
    from dpeer.data.check import CheckReport, Spread

app = typer.Typer(no_args_is_help=True)

Source = Annotated[
    str,
    typer.Argument(help="File, folder or hub id, with :SUBSET and @SPLIT where there are several, e.g. a/b:c@train."),
]
Mapped = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="PRESET|KEY=VALUE",
        help="What the columns mean: a preset's name, or keys of data.map such as golden=chosen; repeat.",
    ),
]


@app.command()
def check(
    source: Source,
    tokenizer: Annotated[
        str | None, typer.Option(help="Model folder or hub id: audit its template and sizes too.")
    ] = None,
    heldout: Annotated[str | None, typer.Option(help="Held-out data; default: the test split of SOURCE.")] = None,
    map_: Mapped = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Audit with its model, template, options and map, as train would."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of it, e.g. data.reasoning=drop; repeat."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="What a constraint would be held to: a mean loss per pair.", min=0.01, max=5)
    ] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Count and audit a data set; exit code 1 when training would refuse it or be misled by it."""
    from dpeer.data.check import check as check_data

    if set_ and not (recipe or tokenizer):
        raise typer.BadParameter("give --tokenizer or --recipe, of whose words it is a setting", param_hint="--set")
    given = _map(map_)
    if recipe or tokenizer:
        report = _audited(source, heldout, _config(source, tokenizer, given, recipe, set_ or ()))
    else:
        report = check_data(source, None, heldout, given)
    if as_json:
        typer.echo(report.to_json())
    else:
        _render(report, tolerance)
    raise typer.Exit(1 if report.errors else 0)


@app.command()
def show(
    source: Source,
    number: Annotated[int, typer.Argument(help="Which record, from 1.", min=1)] = 1,
    split: Annotated[str, typer.Option(help="Split of a folder or hub id.")] = "train",
    map_: Mapped = None,
) -> None:
    """Show one record: its prompt, every response with what it fails, and the edges."""
    from dpeer.data.load import load
    from dpeer.data.order import edges
    from dpeer.errors import DataError

    data = load(source, split, map=_map(map_))
    if number > len(data.records):
        raise DataError(f"{source} has {len(data.records)} records; record {number} does not exist")
    record = data.records[number - 1]
    console = Console(highlight=False)
    console.print(f"[bold]{markup(record.source)}[/]  mask {markup('+'.join(record.mask))}")
    for message in record.prompt:
        console.print(f"\n[bold]{message.role}[/]\n{markup(message.content)}")
    for k, response in enumerate(record.responses, 1):
        title = f"response {k}: " + (f"fails {'+'.join(sorted(response.fails))}" if response.fails else "golden")
        console.print(f"\n[bold]{markup(title)}[/]\n{markup(response.text)}")
    pairs = ", ".join(f"{e.better + 1} > {e.worse + 1} ({e.dimension})" for e in edges(record))
    console.print(f"\n[bold]edges[/] {markup(pairs)}")


@app.command()
def convert(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="A new .jsonl file.", metavar="FILE.jsonl")],
    map_: Mapped = None,
) -> None:
    """Write a data set in the general form, and say what could not be attributed to one dimension, and why."""
    from dpeer.data.convert import convert as convert_data
    from dpeer.data.order import edge_counts

    data = convert_data(source, output, _map(map_))
    console = Console(highlight=False, soft_wrap=True)
    for reading in data.reading:
        console.print(*map(markup, reading.lines()), sep="\n")
    edges = ", ".join(f"{d} {n:,}" for d, n in edge_counts(data).items())
    prompts = len({r.prompt for r in data.records})
    console.print(markup(f"{output}: {len(data.records):,} records of {prompts:,} prompts; edges: {edges}"))


@app.command()
def tidy(
    outputs: Annotated[
        list[Path], typer.Argument(help="output_dir of recipes, or folders of sweeps.", metavar="FOLDER...")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing, only say what would be.")] = False,
) -> None:
    """Remove tokenised records that no unfinished run in these folders needs; what is younger than a day stays."""
    from dpeer.errors import DataError
    from dpeer.training.token_place import remove, stored

    if missing := [str(folder) for folder in outputs if not folder.is_dir()]:
        raise DataError(f"{missing[0]}: no such folder; give the output_dir of a recipe, or the folder of a sweep")
    freed, console = 0, Console(highlight=False, soft_wrap=True)
    for one in stored(outputs):
        verb = "kept, " + one.kept if one.kept else "would be removed" if dry_run else "removed"
        if not one.kept and not dry_run:
            remove(one.path)
        freed += 0 if one.kept else one.size
        console.print(markup(f"{one.path}: {one.size / 2**20:,.1f} MiB, {verb}"))
    console.print(f"{freed / 2**20:,.1f} MiB {'would be ' if dry_run else ''}freed")


def _map(given: Sequence[str] | None) -> Map | None:
    """`--map preset --map key=value` as data.map."""
    if not given:
        return None
    from dpeer.config_io import parsed_section
    from dpeer.config_sources import Map

    presets = [text for text in given if "=" not in text]
    if len(presets) > 1:
        raise typer.BadParameter(f"one preset at most, got {', '.join(presets)}", param_hint="--map")
    return parsed_section(Map, {"preset": presets[0]} if presets else {}, [t for t in given if "=" in t], "--map")


def _config(source: str, model: str | None, given: Map | None, recipe: str | None, settings: Sequence[str]) -> Config:
    """What --tokenizer and --map say, else the settings, else the recipe."""
    from dpeer.launcher.recipe import config_of, training_config

    if recipe is None:
        return config_of(source, model or "", given, settings)
    found = training_config(recipe, (*settings, f"model.path={json.dumps(model)}") if model else settings)
    return found.model_copy(update={"data": found.data.model_copy(update={"map": given})}) if given else found


def _audited(source: str, heldout: str | None, config: Config) -> CheckReport:
    """As `train` would ask, but for the lengths."""
    from dpeer.data.check import check as check_data
    from dpeer.model.shape import model_facts
    from dpeer.model.words import options_of, tokenizer_of

    model = model_facts(config.model.path, config.model.revision)
    return check_data(source, tokenizer_of(config), heldout, config.data.map, model, options_of(config))


def _render(report: CheckReport, tolerance: float) -> None:
    from dpeer.data.faults import screen
    from dpeer.launcher.recipe import HOW_TO_SET

    console = Console(highlight=False, soft_wrap=True)
    records = ", ".join(f"{split.records} {split.name}" for split in report.splits) or "no"
    console.print(
        f"{markup(report.source)}: {records} records; errors: {len(report.errors)}, warnings: {len(report.warnings)}"
    )
    if report.errors:
        console.print("[bold red]errors[/]", *map(markup, screen(report.errors)), sep="\n")
        if any(key in fault.text for fault in report.errors for key in ("model.", "data.end", "data.reas")):
            console.print(f"{HOW_TO_SET}, or by --recipe FILE")
        return
    for reading in report.reading:
        console.print(*map(markup, reading.lines()), sep="\n")
    lengths = [{name: _range(spread) for name, spread in split.lengths.items()} for split in report.splits]
    names = [split.name for split in report.splits]
    _table(console, "records per mask", names, [split.masks for split in report.splits])
    _support(console, report, tolerance)
    _table(console, "least / median / most", names, lengths)
    if report.warnings:
        console.print("[bold yellow]warnings[/]", *map(markup, screen(report.warnings)), sep="\n")


def _support(console: Console, report: CheckReport, tolerance: float) -> None:
    """What constraints the data can support, a line per dimension."""
    from dpeer.estimate.support import needs, support

    table = Table("dimension", "edges", "prompts", "held out", "proves at best", "", box=None, pad_edge=False)
    rows = support(report.splits, tolerance)
    for row in rows:
        counts = (f"{row.edges:,}", f"{row.prompts:,}", f"{row.heldout:,}", f"{row.provable:.2g}")
        table.add_row(markup(row.dimension), *counts, row.verdict)
    console.print()
    console.print(table)
    if rows:
        console.print(needs(rows[0], tolerance, carved=len(report.splits) == 1))


def _table(console: Console, title: str, names: Sequence[str], columns: Sequence[Mapping[str, object]]) -> None:
    table = Table(title, *names, box=None, pad_edge=False)
    for key in dict.fromkeys(key for column in columns for key in column):
        table.add_row(markup(key), *(str(column.get(key, "")) for column in columns))
    console.print()
    console.print(table)


def _range(spread: Spread) -> str:
    return f"{spread.least} / {spread.median:g} / {spread.most}"
