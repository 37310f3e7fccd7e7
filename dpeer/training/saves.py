"""Checkpoints as a driver orders them: when one is due, the one that is being written, and what writing takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dpeer.config import Config
from dpeer.objective.rows import SaveRow
from dpeer.training.calls import PolicyCalls, SaveCost, Workers
from dpeer.training.grace import shortage
from dpeer.training.run_dir import RunDir, refuse_unshared

NO_ROOM = (
    "the hosts have too little free memory for a copy of the checkpoint, so training waits while one is written "
    "(training.checkpoint_async). `dpeer plan` says what a copy takes"
)


@dataclass(frozen=True, slots=True)
class Ahead:
    """A checkpoint that ranks write beside the training: its step, the ledger's checksum after it, and the seconds that
    training stood still for it so far."""

    step: int
    ledger: str | None
    blocked_s: float
    asked: bool = True
    """It was to be written in the background."""


class Saves:
    """One life of the workers. `committed` is called when a checkpoint has become the newest one. At most one is being
    written at a time, and none goes before the next is whole."""

    def __init__(self, config: Config, files: RunDir, workers: Workers, committed: Callable[[], None]) -> None:
        self.config, self.files, self.workers, self.committed = config, files, workers, committed
        self.warned: set[str] = set()
        self.began = time.monotonic()
        self.ahead: Ahead | None = None
        self.measured: SaveRow | None = None
        self.refused = False  # by ranks, to write in the background

    def due(self, step: int, total: int) -> bool:
        """Whether the driver wants a checkpoint of this step. Only the schedule by steps is the same in each life."""
        every, minutes = self.config.training.checkpoint_every, self.config.training.checkpoint_minutes
        waited = time.monotonic() - self.began
        late = minutes is not None and self.ahead is None and waited >= 60 * minutes
        return step == total or late or (every is not None and step % every == 0)

    def save(self, step: int, *, now: bool) -> None:
        """`now`: it is whole when this returns. One that is in flight is waited for first."""
        self.finish()
        self.began, began = time.monotonic(), time.perf_counter()
        folder, ledger = self._folder(step), self.files.end(self.files.ledger)
        policy = self.workers.policy()
        if self.config.training.checkpoint_async and not now:
            policy.call(f"copying step {step}", PolicyCalls.begin_save, folder)
            self.ahead = Ahead(step, ledger, time.perf_counter() - began)
        else:
            cost = policy.call(f"saving step {step}", PolicyCalls.save, folder)[0]
            self._commit(Ahead(step, ledger, 0.0, asked=False), cost, began)

    def finish(self) -> None:
        """Wait for the checkpoint in flight, if there is one, and make it count."""
        if self.ahead:
            ahead, self.ahead = self.ahead, None
            began = time.perf_counter()
            phase = f"waiting for the checkpoint of step {ahead.step}"
            self._commit(ahead, self.workers.policy().call(phase, PolicyCalls.finish_save)[0], began)

    def told(self, step_s: float, warn: Callable[[str], object]) -> SaveRow | None:
        """What the last save took, once; and of two things that it has shown a warning, once in a life."""
        save, self.measured = self.measured, None
        if save and self.refused:
            self._once(warn, "room", f"step {save['step']}: {NO_ROOM}")
        if save and (short := shortage(self.config, save["bytes"], save["seconds"], step_s)):
            self._once(warn, "grace", short)
        return save

    def _once(self, warn: Callable[[str], object], what: str, message: str) -> None:
        if what not in self.warned:
            self.warned.add(what)
            warn(message)

    def _folder(self, step: int) -> Path:
        """Made here: that it is there says, after a kill, that this checkpoint was on its way."""
        folder = self.files.temporary_checkpoint(step)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _commit(self, ahead: Ahead, cost: SaveCost, began: float) -> None:
        temporary = self.files.temporary_checkpoint(ahead.step)
        refuse_unshared(temporary, "the driver")
        self.files.sync()
        self.files.bind(temporary, ahead.step, ahead.ledger)
        final = self.files.checkpoint(ahead.step)
        self.workers.policy().call_first("committing a checkpoint", PolicyCalls.commit, temporary, final)
        self.committed()
        self.refused = ahead.asked and not cost["background"]
        self.measured = {
            "step": ahead.step,
            **cost,
            "bytes_per_second": cost["bytes"] / max(cost["seconds"], 1e-9),
            "blocked_s": ahead.blocked_s + time.perf_counter() - began,
        }
