"""Signals to the driver: a person's or a scheduler's wish to stop, and pre-emption."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dpeer.errors import ConfigError, Interrupted
from dpeer.launcher import exit_codes
from dpeer.training.run_dir import RunDir

PREEMPT_VARIABLE = "DPEER_PREEMPT_SIGNAL"
TWICE_S = 1.0  # `timeout` and schedulers send one signal twice within moments; a person does not


def preempt_signal() -> signal.Signals:
    """The signal that announces pre-emption: DPEER_PREEMPT_SIGNAL, or USR1. Raises ConfigError for any but a few."""
    given = os.environ.get(PREEMPT_VARIABLE) or "USR1"
    name = f"SIG{given.upper().removeprefix('SIG')}"
    allowed = ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "SIGURG", "SIGWINCH", "SIGCONT")
    if name not in allowed:
        raise ConfigError(
            f"{PREEMPT_VARIABLE}={given}: the pre-emption signal must be one of "
            f"{', '.join(n.removeprefix('SIG') for n in allowed)} (INT and TERM mean that the run shall stop for good)."
        )
    return signal.Signals[name]


class Signals:
    """Ctrl-C, SIGTERM, SIGHUP (a closed terminal; `nohup` has it ignored) and the pre-emption signal.

    During training they wait for the step's end and a checkpoint. A second one of the first three stops without; the
    pre-emption signal never cuts a save short, however often it comes. Elsewhere there is nothing worth saving, and the
    first one stops at once; more of them within moments leave what is being closed alone.

    How to go on then is said by the run's `files`, or by `again`.
    """

    def __init__(
        self, files: RunDir | None = None, again: str = "What was saved is kept. Go on with --resume."
    ) -> None:
        self.files, self.again = files, again
        self.received: int | None = None
        self._preempt = preempt_signal()
        self._deferred = False
        self._said: str | None = None
        self._first = -math.inf
        self._saved: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        for number in {signal.SIGINT, signal.SIGTERM, self._preempt, *(() if ignored else (signal.SIGHUP,))}:
            self._saved[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, handler in self._saved.items():
            signal.signal(number, handler)
            outer = getattr(handler, "__self__", None)
            if isinstance(outer, Signals):  # a repeat may come when this level has ended
                outer._first = max(outer._first, self._first)
        if isinstance(error, SystemError) and self._said:
            # Compiled code that a signal interrupts, such as Ray's waits, reports a fault of its own; the chain of its
            # causes may go round in a circle, and need not hold what was raised.
            raise Interrupted(self._said, self.exit_code) from None

    def _handle(self, number: int, frame: Any) -> None:
        moments = time.monotonic() - self._first <= TWICE_S
        if not self._deferred:
            if moments or (self.received is not None and number == self._preempt):
                return
            self.received, self._first = number, time.monotonic()
            raise self._stop("Stopped by a signal outside training.")
        if self.received is None:
            self.received, self._first = number, time.monotonic()
            once_more = "" if number == self._preempt else " Once more to stop without."
            print(f"Stopping after this step; saving a checkpoint.{once_more}", flush=True)
        elif number == self._preempt:
            return
        elif self.received == self._preempt:  # pre-empted first, then told to stop: it shall not start again
            self.received, self._first = number, time.monotonic()
        elif not moments:
            raise self._stop("Stopped at once by a second signal.")

    def _stop(self, why: str) -> Interrupted:
        self._said = f"{why} {self._way_on}"
        return Interrupted(self._said, self.exit_code)

    @property
    def _way_on(self) -> str:
        return self.files.way_on if self.files else self.again

    @property
    def exit_code(self) -> int:
        """85 after pre-emption; else what a shell expects of a process ended by the signal: 130, 143 or 129."""
        received = self.received or signal.SIGINT
        return exit_codes.PREEMPTED if received == self._preempt else 128 + received

    @contextmanager
    def deferred(self) -> Iterator[None]:
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
