"""`dpeer methods`: the methods section of a paper, from what was recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dpeer.eval.irt.claims import Claims
    from dpeer.report.methods import Writer


def methods(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of runs and of fits, in the order of the paper.", metavar="FOLDER...")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write, .md (Pandoc) or .tex (natbib); the bibliography lies beside it, .bib.",
        ),
    ] = None,
) -> None:
    """Say what was done, in the words and numbers of a methods section, with citations. Default: Markdown, printed."""
    from dpeer.errors import ConfigError
    from dpeer.files import write_text
    from dpeer.report.methods import Writer

    suffix = output.suffix.lower() if output else ".md"
    if suffix not in (".md", ".tex"):
        raise ConfigError(f"--output {output}: must end in .md (Markdown for Pandoc) or .tex (LaTeX with natbib)")
    writer = Writer("tex" if suffix == ".tex" else "md")
    text = "\n".join(_section(folder, writer, len(folders) > 1) for folder in folders)
    if output is None:
        typer.echo(text + "\n" + writer.bibliography(), nl=False)
        return
    write_text(output, text)
    write_text(output.with_suffix(".bib"), writer.bibliography())
    typer.echo(f"{output} and {output.with_suffix('.bib')}: {len(writer.cited)} works cited")


def _section(folder: Path, writer: Writer, titled: bool) -> str:
    from dpeer.errors import ConfigError
    from dpeer.report.methods import training_methods
    from dpeer.report.run import read_run

    title = writer.title(folder.resolve().name) if titled else ""
    if (folder / "ledger.jsonl").is_file():
        return title + training_methods(read_run(folder), writer)
    if (folder / "draws.npz").is_file():
        return title + _fit(folder, writer)
    raise ConfigError(
        f"{folder}: is neither a run (ledger.jsonl) nor a fit of ratings (draws.npz). Give folders that `dpeer train` "
        "or `dpeer irt fit` wrote."
    )


def _fit(folder: Path, writer: Writer) -> str:
    """The fit with the base and the claims that its report has."""
    from dpeer.eval.irt.fit import load
    from dpeer.eval.irt.tables import tabulate
    from dpeer.eval.report.methods import evaluation_methods

    base, claims = reported(folder)
    return evaluation_methods(tabulate(load(folder), base, wanted=claims), writer)


def reported(folder: Path) -> tuple[str | None, Claims]:
    """The base and the claims of a fit's page; the defaults where there is none."""
    from dpeer.eval.irt.claims import Claims

    try:
        facts = json.loads((folder / "tables" / "facts.json").read_bytes())
    except (OSError, ValueError):
        facts = {}
    return facts.get("base"), Claims(facts.get("smallest_effect") or 0.0, tuple(facts.get("family") or ()))
