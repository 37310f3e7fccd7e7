"""A fault at an exact place of a program: what Python tells its audit hooks about files and programs sets it off.

Writers in other languages (safetensors, torch) tell nothing; they are met between two accesses of Python.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Deed = Literal["kill", "stop", "term", "preempt", "cut", "fill", "refuse", "protect", "vanish", "kill child"]
CUT_BYTES = 300
"""Where files end once writing is cut: above that the system refuses every write of this process."""
AWAY = ".away"


@dataclass(frozen=True)
class Trap:
    """Do something at the `nth` audit event of that name whose arguments match."""

    event: str
    matches: str
    deed: Deed = "kill"
    nth: int = 1


def install(trap: Trap, place: Path) -> None:
    """In this process, for good. `place`: the folder in which everything is written."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == trap.event and re.search(trap.matches, " > ".join(map(str, arguments))):
            seen += 1
            if seen == trap.nth:
                DEEDS[trap.deed](place, arguments)

    sys.addaudithook(hook)


def _signal(number: int) -> Callable[[Path, tuple[Any, ...]], None]:
    return lambda place, arguments: os.kill(os.getpid(), number)


def _cut(place: Path, arguments: tuple[Any, ...]) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (CUT_BYTES, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def fill(place: Path, *_: Any) -> None:
    """Leave no room on the file system of the folder."""
    try:
        with (place / "filler").open("ab", buffering=0) as stream:
            for size in (1 << 20, 1 << 12):
                while stream.write(bytes(size)) == size:
                    pass
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def _raise(number: int) -> Callable[[Path, tuple[Any, ...]], None]:
    def deed(place: Path, arguments: tuple[Any, ...]) -> None:
        raise OSError(number, os.strerror(number), str(arguments[0]))

    return deed


def _vanish(place: Path, arguments: tuple[Any, ...]) -> None:
    os.rename(place / "runs", place / AWAY)


def _kill_child(place: Path, arguments: tuple[Any, ...]) -> None:
    """Of a program that is about to be started: a process that outlives this moment kills it once it is there."""
    parent = os.getpid()
    if os.fork():
        return
    while True:
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            if int(child) != os.getpid() and str(arguments[0]) in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(int(child), signal.SIGKILL)
                os._exit(0)
        time.sleep(0.001)


DEEDS: dict[str, Callable[[Path, tuple[Any, ...]], None]] = {
    "kill": _signal(signal.SIGKILL),
    "stop": _signal(signal.SIGSTOP),
    "term": _signal(signal.SIGTERM),
    "preempt": _signal(signal.SIGUSR1),
    "cut": _cut,
    "fill": fill,
    "refuse": _raise(errno.EROFS),
    "protect": _raise(errno.EACCES),
    "vanish": _vanish,
    "kill child": _kill_child,
}
