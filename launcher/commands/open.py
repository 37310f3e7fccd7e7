"""`dpeer open`: an index of all results in a folder, in the browser."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer


def open_(
    folder: Annotated[
        Path, typer.Argument(help="Folder of runs, evaluations or sweeps, e.g. runs/demo.", metavar="FOLDER")
    ] = Path("runs"),
    output: Annotated[
        Path | None, typer.Option(help="File of the index; default: index.html in the folder.", dir_okay=False)
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it, where there is a screen.")] = True,
) -> None:
    """Write an index of all pages in a folder, with what each found, and open it in the browser."""
    from dpeer.report.index import write_index

    path, found = write_index(folder, output)
    count = f"{len(found)} result{'s' if len(found) != 1 else ''}"
    typer.echo(f"{path}  ({count})")
    if browser and screen():
        import webbrowser

        webbrowser.open(path.resolve().as_uri())


def screen() -> bool:
    """Whether a browser that this process starts could be seen: terminal browsers would take the terminal over."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


def command() -> str:
    """How this program was called, as a person could call it again."""
    name = sys.argv[0]
    return os.path.relpath(name) if Path(name).name == "dpeer" and os.sep in name else "dpeer"
