"""`dpeer diff`: two runs side by side in the terminal."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from dpeer.escape import markup
from dpeer.json_safe import json_safe
from dpeer.report.diff import RunDiff, diff_runs, largest

SHOWN_FIELDS = 10


def run(a: Path, b: Path, as_json: bool) -> RunDiff:
    diff = diff_runs(a, b)
    if as_json:
        print(json.dumps(json_safe(diff.to_dict()), indent=1))
    else:
        show(diff, a, b, Console(highlight=False))
    return diff


def show(diff: RunDiff, a: Path, b: Path, console: Console) -> None:
    console.print(f"A: {markup(a)}\nB: {markup(b)}", soft_wrap=True)
    for part, rows in groupby(diff.differences, key=lambda d: d.part):
        named = [(d.key + ("" if d.matters else " (changes no result)"), d.a, d.b) for d in rows]
        console.print(_table(part, named, len(named)))
    if not diff.differences:
        console.print("Same config, data, model, reference, code and versions.")
    if not diff.ledger:
        lengths = "equal" if diff.steps[0] == diff.steps[1] else "equal as far as both go"
        console.print(f"Ledgers: {lengths} ({diff.steps[0]} and {diff.steps[1]} steps).")
        return
    first = diff.policy
    if diff.ledger.step != (first.step if first else None):
        console.print(_table(f"ledgers: first difference, in step {diff.ledger.step}", diff.ledger.fields))
    if first:
        console.print(_table(f"ledgers: what the policy computes first differs in step {first.step}", first.fields))
        field, old, new = largest(first)
        numbers = f"{_value(old)} and {_value(new)}"
        console.print(f"Largest relative difference there: {markup(field)}, {numbers}.", soft_wrap=True)
    else:
        console.print("What the policy computes is equal in all steps that both have.")


def _table(title: str, rows: list[tuple[str, Any, Any]], most: int = SHOWN_FIELDS) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE)
    for column in ("field", "A", "B"):
        table.add_column(column, overflow="fold")
    for name, old, new in rows[:most]:
        table.add_row(*(markup(text) for text in (name, _value(old), _value(new))))
    if (hidden := len(rows) - most) > 0:
        table.add_row(f"... and {hidden} more (all with --json)", "", "")
    return table


def _value(value: Any) -> str:
    return "absent" if value is None else value if isinstance(value, str) else json.dumps(value)
