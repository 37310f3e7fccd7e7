"""What a person sees while calls are answered."""

from __future__ import annotations

import time

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dpeer.escape import markup

LINE_EVERY_S = 15.0


class Meter:
    """Rows done of a total with rows/s and time left: a live bar on a terminal, else a line now and then."""

    def __init__(self, console: Console, name: str, total: int, done: int) -> None:
        self.console, self.name, self.total, self.before, self.done = console, name, total, done, done
        self.began = self.printed = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(name, total=total, completed=done, speed="starting")

    def __enter__(self) -> Meter:
        self.bar.start()
        if not self.console.is_terminal:
            self.console.print(f"{self.name} {self.done:,}/{self.total:,}  starting")
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()

    @property
    def rate(self) -> float:
        """Rows per second since the start, that of the engine included."""
        return (self.done - self.before) / max(time.monotonic() - self.began, 1e-9)

    def advance(self, rows: int, spent: str = "") -> None:
        """`spent`: what the evaluation has cost so far; nothing where it costs nothing."""
        self.done += rows
        spent = f"  {spent} spent" if spent else ""
        self.bar.update(self.task, completed=self.done, speed=f"{self.rate:,.1f} rows/s{spent}")
        now = time.monotonic()
        if not self.console.is_terminal and (now - self.printed >= LINE_EVERY_S or self.done == self.total):
            self.printed = now
            left = (self.total - self.done) / self.rate if self.rate else 0.0
            self.console.print(
                f"{self.name} {self.done:,}/{self.total:,}  {self.rate:,.1f} rows/s  {duration(left)} left{spent}"
            )


def duration(seconds: float) -> str:
    """A time span as a person says it: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show_statuses(table: pd.DataFrame, by: str, console: Console) -> None:
    """A line per model or judge: how many of its rows have which status, `ok` first."""
    for name, statuses in table.groupby(by, sort=False)["status"]:
        counts = statuses.value_counts().sort_index(key=lambda index: index != "ok")
        style = "" if set(counts.index) == {"ok"} else "yellow"
        console.print(
            f"{markup(name)}: " + ", ".join(f"{n:,} {markup(status)}" for status, n in counts.items()), style=style
        )
