"""A result of `dpeer irt` on a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dpeer.escape import markup

if TYPE_CHECKING:
    from dpeer.eval.irt.result import Result


def show(result: Result, page: Path, console: Console) -> None:
    """The result on a terminal."""
    from dpeer.eval.irt.claims import claims
    from dpeer.eval.irt.leniency import said
    from dpeer.eval.irt.terminal import terminal

    for part in terminal(result):
        console.print(part)
    for line in said(result):
        console.print(f"people: {markup(line)}", soft_wrap=True)
    for found in result.gate["biases"]:
        console.print(f"[yellow]bias:[/] {markup(found)}", soft_wrap=True)
    for claim in claims(result):
        console.print(f"• {markup(claim)}", soft_wrap=True)
    console.print(f"report      {markup(page)}", soft_wrap=True)
