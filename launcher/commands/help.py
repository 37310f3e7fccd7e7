"""`dpeer help`: the page of errors in the terminal, by section."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any

import typer


def help_(
    ctx: typer.Context,
    section: Annotated[
        str | None, typer.Argument(help="As the line below an error names it; all are listed without.")
    ] = None,
) -> None:
    """Explain an error: what it means and what to do."""
    from rich.console import Console
    from rich.markdown import Markdown

    from dpeer.errors import ConfigError
    from dpeer.launcher.faq import sections

    known, console = sections(), Console(highlight=False)
    if section is None:
        for name, text in known.items():
            console.print(f"{name:15} {title(text)}")
        return
    if section not in known:
        group: Any = ctx.parent.command if ctx.parent else None
        if section in getattr(group, "commands", {}):
            raise ConfigError(f"{section} is a command: dpeer {section} --help")
        near = difflib.get_close_matches(section, known, 1)
        meant = f"; did you mean {near[0]}?" if near else "."
        raise ConfigError(f"there is no section '{section}' on the page of errors{meant} `dpeer help` lists all.")
    pages = re.sub(r"\]\((?=[\w/.-]+\.md)", "](docs/", known[section])
    console.print(Markdown(pages, hyperlinks=False))


def title(text: str) -> str:
    return text.partition("\n")[0].replace("`", "").strip("# ")
