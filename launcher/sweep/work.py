"""One lane of a sweep: takes a free cell, trains it, and goes on until every cell is finished or has failed."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress

from rich.console import Console

from dpeer.config import Cluster
from dpeer.errors import ClusterError, DpeerError
from dpeer.escape import markup
from dpeer.launcher import exit_codes
from dpeer.launcher.cluster import NodeLost
from dpeer.launcher.driver import disk_faults
from dpeer.launcher.gpus import resolved_gpus
from dpeer.launcher.group import Groups
from dpeer.launcher.lock import POLL_S, Owner, claim, exclusive
from dpeer.launcher.sweep.folder import State, SweepFolder
from dpeer.launcher.sweep.spec import Cell
from dpeer.launcher.train import train
from dpeer.training.calls import DeviceLost
from dpeer.training.faults import OutOfMemory
from dpeer.training.fill import fill_cache


class Stopped(BaseException):
    """A signal ended a cell after it was saved; `code` is the exit code of the process."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Lane:
    """Trains cells one after another; cells of equal placement use the same worker groups."""

    def __init__(self, folder: SweepFolder, retries: int) -> None:
        self.folder, self.retries = folder, retries
        self.console = Console(highlight=False, soft_wrap=True)
        self.groups: Groups | None = None
        self.placement: tuple[Cluster, bool] | None = None
        self.left: set[str] = set()  # nodes with a broken GPU

    def work(self, cells: Sequence[Cell]) -> None:
        """Return when all cells are finished or have failed, also those that another driver is at. Raises Stopped."""
        announced: set[str] = set()
        try:
            while left := [c for c in cells if self.folder.state(c.name).kind not in ("finished", "failed")]:
                if any(self.take(cell) for cell in left):
                    continue
                self.close()  # others are at the rest: keep no resources meanwhile
                for name in (name for cell in left for name in (cell.name, *cell.needs)):
                    if (owner := self.folder.state(name).owner) and name not in announced:
                        self.console.print(f"waiting for {name}, which {owner.place} is at")
                        announced.add(name)
                time.sleep(POLL_S)
        finally:
            self.close()

    def take(self, cell: Cell) -> bool:
        """Train the cell unless somebody else is at it, or at one that it needs; returns whether it is settled now."""
        needed = {name: self.folder.state(name) for name in cell.needs}
        if any(state.kind == "running" for state in needed.values()):
            return False
        with claim(self.folder.lock(cell.name)) as ours:
            settled = self.folder.run(cell.name).finished or self.folder.failure(cell.name).exists()
            if ours and not settled:
                self.console.rule(f"[bold]cell {cell.index}[/]  {cell.name}", align="left")
                if reason := unmet(needed):
                    self.console.print(f"[red]{cell.name} failed:[/] {markup(reason)}")
                    self.folder.fail(cell.name, reason, 1)
                else:
                    self.attempt(cell)
        return ours

    def attempt(self, cell: Cell) -> None:
        """Train a cell, again if its workers were lost; what it fails of in the end is written down."""
        for attempt in range(1, self.retries + 2):
            try:
                return self.train(cell)
            except NodeLost as lost:
                self.console.print(markup(str(lost)))
                raise Stopped(exit_codes.NODE_LOST) from lost
            except Exception as error:
                self.close()
                reason = str(error)
                if not isinstance(error, DpeerError):
                    reason = f"{type(error).__name__}: {error}"
                    with suppress(OSError):  # of a disk that is full, which may be the error itself
                        self.folder.run(cell.name).keep_error(reason, "".join(traceback.format_exception(error)))
                transient = isinstance(error, ClusterError) and not isinstance(error, OutOfMemory)
                lasting = isinstance(error, DpeerError) and not transient
                last = lasting or attempt > self.retries
                self.console.print(f"[red]{cell.name} failed:[/] {markup(reason)}")
                if last:
                    return self.folder.fail(cell.name, reason, attempt)
                self.console.print(f"Trying again ({attempt} of {self.retries}).")

    def train(self, cell: Cell) -> None:
        config, files = resolved_gpus(cell.config), self.folder.run(cell.name)
        # Variables of worker processes follow from both.
        placement = config.cluster, config.training.deterministic
        if self.placement != placement:
            self.close()
        self.groups = self.groups or Groups(config)
        self.groups.left |= self.left
        self.placement = placement
        try:
            if config.cluster.reference == "cache":
                with exclusive(self.folder.reference_lock, self.tell_wait), disk_faults(files):
                    fill_cache(config, self.groups)
            code = train(cell.config, self.groups, resume=files.manifest.exists())
        except DeviceLost as lost:
            self.left.add(lost.node)
            raise
        finally:
            self.left |= self.groups.left if self.groups else set()
        if code:
            raise Stopped(code)

    def tell_wait(self, owner: Owner) -> None:
        self.console.print(f"waiting for the reference log-probabilities, which {owner.place} computes")

    def close(self) -> None:
        if self.groups:
            self.groups.close()
        self.groups = self.placement = None


def unmet(needed: Mapping[str, State]) -> str:
    """Why a cell cannot start from the exports of these cells; empty where it can."""
    for name, state in needed.items():
        if state.kind == "failed":
            return f"It starts from the export of {name}, which has failed: {state.reason}"
        if state.kind != "finished":
            return f"It starts from the export of {name}, which is not trained yet. Run that first: --cell {name}"
    return ""
