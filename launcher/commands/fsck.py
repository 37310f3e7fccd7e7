"""`dpeer fsck`: is everything in a folder as it was written?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

COLOURS = {"damaged": "red", "no checksum": "yellow", "left over": "dim"}


def fsck(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, an evaluation, a fit or a sweep.", metavar="FOLDER")],
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Name what is sound too.")] = False,
) -> None:
    """Check every file of a folder against its checksum; exit code 1 when one is damaged or missing."""
    from dpeer.launcher.fsck import check

    console = Console(highlight=False)
    counts: Counter[str] = Counter()
    for found in check(folder):
        counts[found.state] += 1
        if found.state != "sound" or verbose:
            console.print(Text(f"{found.state:12}", COLOURS.get(found.state, "green")), end="")
            console.print(Text(f"{found.path} {found.says}"), soft_wrap=True)
    summary = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
    console.print(Text(f"{folder}: {summary}"), soft_wrap=True)
    if counts["no checksum"]:
        console.print("What has no checksum comes from an earlier dpeer or another program; damage to it is not seen.")
    raise typer.Exit(1 if counts["damaged"] else 0)
