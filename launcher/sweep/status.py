"""What a sweep is doing, from its files alone: any number of people may look, on any machine that sees the folder."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dpeer.config import Config
from dpeer.errors import DpeerError
from dpeer.escape import markup, visible
from dpeer.launcher.progress import describe
from dpeer.launcher.sweep.folder import Kind, State, SweepFolder
from dpeer.training.run_dir import RunDir

EVERY_S = 2.0
TAIL_BYTES = 65536
COLOURS: dict[Kind, str] = {
    "finished": "green", "running": "cyan", "failed": "red", "stopped": "yellow", "waiting": "dim",
}  # fmt: skip


@dataclass(frozen=True)
class CellStatus:
    index: int
    name: str
    state: State
    step: int
    steps: int | None
    latest: str
    """Losses, multipliers and speed of the last step."""


def statuses(folder: SweepFolder) -> list[CellStatus]:
    """One per cell of the manifest. ConfigError: no sweep has begun in this folder."""
    return [_status(folder, cell) for cell in folder.read_manifest()["cells"]]


def overview(folder: SweepFolder) -> Table:
    """All cells as a table."""
    rows = statuses(folder)
    counts = {kind: sum(s.state.kind == kind for s in rows) for kind in COLOURS}
    title = f"{markup(folder.path)}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
    table = Table("cell", "name", "state", "step", "now", title=title, title_justify="left")
    for s in rows:
        place = f"{s.state.owner.host}, pid {s.state.owner.pid}" if s.state.owner else ""
        now = s.state.reason.splitlines()[0] if s.state.reason else s.latest if s.state.kind == "running" else ""
        table.add_row(
            str(s.index),
            s.name,
            Text(s.state.kind, style=COLOURS[s.state.kind]),
            f"{s.step}/{s.steps or '?'}",
            Text(visible(f"{now}  ({place})" if place else now)),
        )
    return table


def show(folder: SweepFolder, console: Console) -> None:
    """Once, or on a terminal again and again until nothing is left to do."""
    if not console.is_terminal:
        console.print(overview(folder))
        return
    with Live(overview(folder), console=console, refresh_per_second=2) as live:
        while any(s.state.kind not in ("finished", "failed") for s in statuses(folder)):
            time.sleep(EVERY_S)
            live.update(overview(folder))
        live.update(overview(folder))


def _status(folder: SweepFolder, cell: dict[str, Any]) -> CellStatus:
    run = folder.run(cell["name"])
    entry, timing = _last(run.ledger), _last(run.timing)
    return CellStatus(
        index=cell["index"],
        name=cell["name"],
        state=folder.state(cell["name"]),
        step=entry["step"] if entry else 0,
        steps=_steps(run, cell["config"]),
        latest=describe(entry, timing) if entry and timing else "",
    )


def _steps(run: RunDir, config: dict[str, Any]) -> int | None:
    training = Config.model_validate(config).training
    if training.steps or not run.manifest.exists():
        return training.steps
    try:
        return training.total_steps(run.read_manifest()["data"]["train"]["records"])
    except DpeerError:
        return None


def _last(path: Path) -> dict[str, Any] | None:
    """The last whole line of a file that is being written."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = stream.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            return dict(json.loads(line))
        except ValueError:
            continue
    return None
