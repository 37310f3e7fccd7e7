"""`dpeer bundle` and `dpeer verify`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

COLOURS = {"verified": "green", "differs": "red", "not verified": "yellow"}


def bundle(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write, or a file by the ending .zip.", metavar="BUNDLE")
    ],
    runs: Annotated[list[Path] | None, typer.Argument(help="Folders of finished runs.", metavar="RUN...")] = None,
    evaluation: Annotated[
        list[Path] | None, typer.Option(help="Folder of an evaluation, for its ratings and responses; repeat.")
    ] = None,
    fit: Annotated[list[Path] | None, typer.Option(help="Folder of a fit, for draws, tables and page; repeat.")] = None,
    data: Annotated[bool, typer.Option("--data", help="Include the files that the runs read.")] = False,
) -> None:
    """Gather what was published so that others can verify it; prints the digest, which one may publish."""
    from dpeer.launcher.bundle.pack import bundle as pack

    digest = pack(runs or (), output, evaluation or (), fit or (), data)
    typer.echo(f"{output}\ndigest {digest}")
    typer.echo(f"Next: dpeer verify {output} --digest {digest}")


def verify(
    path: Annotated[Path, typer.Argument(help="What `dpeer bundle` wrote.", metavar="BUNDLE")],
    digest: Annotated[str | None, typer.Option(help="The published digest, which the bundle must have.")] = None,
    part: Annotated[
        list[str] | None, typer.Option(help="Look at this part only, e.g. runs/lagrangian or fits/irt; repeat.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print what was verified, too.")] = False,
) -> None:
    """Compute again what a bundle allows, and say what nobody can tell from it; exit code 1 when something differs."""
    from dpeer.launcher.bundle.verify import verify as run

    console = Console(highlight=False)
    counts: Counter[str] = Counter()
    for check in run(path, digest, part or ()):
        counts[check.state] += 1
        if check.state != "verified" or verbose:
            console.print(Text(f"{check.state:13}", COLOURS[check.state]), end="")
            console.print(Text(f"{check.part}: {check.says}"), soft_wrap=True)
    summary = ", ".join(f"{counts[state]} {state}" for state in COLOURS if counts[state])
    console.print(Text(f"{path}: {summary}"), soft_wrap=True)
    raise typer.Exit(1 if counts["differs"] else 0)
