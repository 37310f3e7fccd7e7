"""`dpeer watch`: a run's report in the browser, while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpeer.errors import ConfigError

STARTED = ("manifest.json", "ledger.jsonl")


def watch(
    run: Annotated[Path, typer.Argument(help="Run folder, e.g. runs/demo/lagrangian.", metavar="RUN")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0 takes any free one.")] = 0,
) -> None:
    """Show a run's report in the browser and keep it up to date, until Ctrl-C."""
    from dpeer.report.live import HOST, Live

    run = run.absolute()
    refuse_other_folders(run)
    try:
        live = Live(run, port)
    except OSError as error:
        raise ConfigError(f"--port {port}: {HOST}:{port} cannot be used ({error.strerror}). Leave it out.") from None
    try:
        typer.echo(f"{live.url}\nOnly browsers on this machine can open it. Ctrl-C ends it; the run goes on.")
        live.serve()
    except KeyboardInterrupt:
        typer.echo("")


def refuse_other_folders(run: Path) -> None:
    """ConfigError for a folder that is no run, and that no driver is about to make one."""
    from dpeer.launcher.lock import holder

    if any((run / name).is_file() for name in STARTED):
        return
    if not holder(run.parent / "locks" / f"{run.name}.driver.json"):
        raise ConfigError(
            f"{run}: is no run: it has neither {' nor '.join(STARTED)}, and no driver is starting one there. Give the "
            "folder of a run, output_dir/name of its recipe."
        )
