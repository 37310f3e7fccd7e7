"""`dpeer tables`: every table of a result, as files for papers and other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd


def tables(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a run, fit, sweep, comparison, loop, benchmark or quality check.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the files; without it Markdown is printed.")
    ] = None,
    format_: Annotated[
        list[str] | None, typer.Option("--format", help="csv, json, md or tex; repeat. Default: csv, md, tex.")
    ] = None,
) -> None:
    """Write the tables of a result as CSV, JSON, Markdown and LaTeX (booktabs): all numbers in the first two."""
    from dpeer.errors import ConfigError
    from dpeer.report.table_files import FORMATS, as_markdown, write_frames

    if unknown := [name for name in format_ or () if name not in FORMATS]:
        raise ConfigError(f"--format {unknown[0]}: must be one of {', '.join(FORMATS)}")
    if format_ and output is None:
        raise ConfigError("--format goes with --output FOLDER; without it Markdown is printed")
    found = frames(folder)
    if output is None:
        typer.echo("\n".join(f"{name}\n\n{as_markdown(frame)}" for name, frame in found.items()), nl=False)
        return
    written = write_frames(found, output, format_ or ("csv", "md", "tex"))
    typer.echo(f"{output}: {len(written)} files")


def frames(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of a folder by name. DpeerError: it has none, or is no folder of results."""
    from dpeer.errors import DpeerError

    if (folder / "draws.npz").is_file():
        return _fit(folder)
    if (folder / "ledger.jsonl").is_file():
        return _run(folder)
    place = folder if (folder / "bench.json").is_file() else folder / "tables"
    if files := sorted(place.glob("*.csv")):
        return {path.stem: _read(path) for path in files}
    raise DpeerError(
        f"{folder}: no tables here. Give the folder of a run, a fit, a sweep (after `dpeer sweep report`), a "
        "comparison, a loop, a benchmark or a quality check."
    )


def _fit(folder: Path) -> dict[str, pd.DataFrame]:
    """With the base, the claims and the robustness of its report."""
    from dpeer.eval.irt import robustness
    from dpeer.eval.irt.fit import load
    from dpeer.eval.irt.tables import tabulate
    from dpeer.launcher.commands.methods import reported

    posterior = load(folder)
    base, claims = reported(folder)
    return dict(tabulate(posterior, base, None, claims, robustness.load(folder, posterior)).tables)


def _run(folder: Path) -> dict[str, pd.DataFrame]:
    from dpeer.errors import DpeerError
    from dpeer.report.frames import certificate_frames
    from dpeer.report.run import read_run

    certificate = read_run(folder).certificate
    if certificate is None:
        raise DpeerError(f"{folder}: no certificate, which has the tables of a run. It is written when a run ends.")
    return certificate_frames(certificate)


def _read(path: Path) -> pd.DataFrame:
    """A table as it was before `escape.csv_cell`."""
    import pandas as pd

    frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    return frame.map(lambda v: v[1:] if isinstance(v, str) and v[:1] == "'" and v[1:2] in tuple("=+-@ \t") else v)
