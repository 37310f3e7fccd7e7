"""`dpeer data`: look at a data set and check it before a run does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from dpeer.escape import markup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dpeer.data.check import CheckReport, Spread

app = typer.Typer(no_args_is_help=True)

Source = Annotated[str, typer.Argument(help="CSV, JSONL or Parquet file; folder with train.* and test.*; or hub id.")]


@app.command()
def check(
    source: Source,
    tokenizer: Annotated[
        str | None, typer.Option(help="Model folder or hub id: audit its template and sizes too.")
    ] = None,
    heldout: Annotated[str | None, typer.Option(help="Held-out data; default: the test split of SOURCE.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Count and audit a data set; exit code 1 when training would refuse it or be misled by it."""
    from dpeer.data.check import check as check_data

    if tokenizer:
        from dpeer.model.shape import model_facts

        report = check_data(source, _tokenizer(tokenizer), heldout, model_facts(tokenizer))
    else:
        report = check_data(source, heldout=heldout)
    if as_json:
        typer.echo(report.to_json())
    else:
        _render(report)
    raise typer.Exit(1 if report.errors else 0)


@app.command()
def show(
    source: Source,
    number: Annotated[int, typer.Argument(help="Which record, from 1.", min=1)] = 1,
    split: Annotated[str, typer.Option(help="Split of a folder or hub id.")] = "train",
) -> None:
    """Show one record: its prompt, every response with what it fails, and the edges."""
    from dpeer.data.load import load
    from dpeer.data.order import edges
    from dpeer.errors import DataError

    data = load(source, split)
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


def _tokenizer(path: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    from dpeer.errors import DataError

    try:
        loaded = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"--tokenizer {path}: no tokenizer could be loaded ({first}); give the folder of a model or a hub id that "
            "this machine can reach"
        ) from error
    assert isinstance(loaded, PreTrainedTokenizerBase)
    return loaded


def _render(report: CheckReport) -> None:
    from dpeer.data.faults import screen

    console = Console(highlight=False, soft_wrap=True)
    records = ", ".join(f"{split.records} {split.name}" for split in report.splits) or "no"
    console.print(
        f"{markup(report.source)}: {records} records; errors: {len(report.errors)}, warnings: {len(report.warnings)}"
    )
    if report.errors:
        console.print("[bold red]errors[/]", *map(markup, screen(report.errors)), sep="\n")
        return
    lengths = [{name: _range(spread) for name, spread in split.lengths.items()} for split in report.splits]
    names = [split.name for split in report.splits]
    _table(console, "records per mask", names, [split.masks for split in report.splits])
    _table(console, "preference edges", names, [split.edges for split in report.splits])
    _table(console, "least / median / most", names, lengths)
    if report.warnings:
        console.print("[bold yellow]warnings[/]", *map(markup, screen(report.warnings)), sep="\n")


def _table(console: Console, title: str, names: Sequence[str], columns: Sequence[Mapping[str, object]]) -> None:
    table = Table(title, *names, box=None, pad_edge=False)
    for key in dict.fromkeys(key for column in columns for key in column):
        table.add_row(markup(key), *(str(column.get(key, "")) for column in columns))
    console.print()
    console.print(table)


def _range(spread: Spread) -> str:
    return f"{spread.least} / {spread.median:g} / {spread.most}"
