"""The list of checks: one line each, green, yellow or red, with what was found and the fix."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from dpeer.errors import ClusterError, DpeerError
from dpeer.escape import markup

Status = Literal["ok", "warning", "failed", "skipped"]
MARKS: dict[Status, str] = {
    "ok": "[green]✓[/]",
    "warning": "[yellow]![/]",
    "failed": "[bold red]✗[/]",
    "skipped": "[dim]-[/]",
}
STYLES: dict[Status, str] = {"ok": "", "warning": "yellow", "failed": "red", "skipped": "dim"}


class Fault(ClusterError):
    """A red line: what was found, and the fix."""

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(f"{found} {fix}")
        self.found, self.fix = found, fix


@dataclass(frozen=True, slots=True)
class Warn:
    """A yellow line: the run can start, but somebody should look."""

    found: str
    fix: str


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    status: Status
    found: str
    fix: str = ""
    seconds: float = 0.0


class Checklist:
    """Collects lines in the order of the checks."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.began = time.monotonic()

    def check(self, name: str, function: Callable[..., Any], *args: Any) -> bool:
        """Run one check: it returns what it found (text or a Warn), or raises a DpeerError. True unless it is red."""
        began = time.monotonic()
        try:
            result = function(*args)
        except DpeerError as error:
            self.fail(name, error, began)
            return False
        if isinstance(result, Warn):
            self._add(name, "warning", result.found, result.fix, began)
        else:
            self._add(name, "ok", str(result), "", began)
        return True

    def fail(self, name: str, error: DpeerError, began: float | None = None) -> None:
        found, fix = (error.found, error.fix) if isinstance(error, Fault) else (str(error), "")
        self._add(name, "failed", found, fix, began or time.monotonic())

    def skip(self, names: tuple[str, ...], why: str) -> None:
        for name in names:
            self._add(name, "skipped", why, "", time.monotonic())

    def _add(self, name: str, status: Status, found: str, fix: str, began: float) -> None:
        self.lines.append(Line(name, status, found, fix, round(time.monotonic() - began, 3)))

    def named(self, status: Status) -> list[str]:
        return [line.name for line in self.lines if line.status == status]

    @property
    def ok(self) -> bool:
        return not self.named("failed")

    def summary(self) -> str:
        done = [line for line in self.lines if line.status != "skipped"]
        failed, warned = self.named("failed"), self.named("warning")
        took = f"in {time.monotonic() - self.began:.0f} s"
        also = f"; warnings: {', '.join(warned)}" if warned else ""
        if failed:
            return f"preflight: {len(failed)} of {len(done)} checks failed {took}: {', '.join(failed)}{also}"
        return f"preflight: {len(done)} checks passed {took}{also}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "seconds": round(time.monotonic() - self.began, 3),
            "checks": [asdict(line) for line in self.lines],
        }

    def show(self, console: Console, statuses: tuple[Status, ...] = ("ok", "warning", "failed", "skipped")) -> None:
        table = Table(show_header=False, box=None, padding=(0, 1, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for line in self.lines:
            if line.status in statuses:
                fix = f"\n→ {markup(line.fix)}" if line.fix else ""
                style = STYLES[line.status]
                table.add_row(MARKS[line.status], line.name, f"{markup(line.found)}{fix}", style=style)
        console.print(table)
        console.print(self.summary(), soft_wrap=True)
