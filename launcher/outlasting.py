"""Output that outlives its reader: when a pipe or a terminal is gone, what is printed goes on into a file."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

T = TypeVar("T")
GONE = {errno.EPIPE, errno.EIO}
OUTPUT = "output.log"
"""In a run's folder: what was printed after its reader had gone."""
NOTE = "--- Nobody reads the output any more; it goes on here. ---\n"


class Outlasting:
    """A standard stream. Once its reader is gone, its file descriptor is that of `log`, to which it appends."""

    def __init__(self, stream: TextIO, log: Path) -> None:
        self.stream, self.log = stream, log

    def write(self, text: str) -> int:
        return self._lasting(lambda: self.stream.write(text))

    def flush(self) -> None:
        self._lasting(self.stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _lasting(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except OSError as error:
            if error.errno not in GONE:
                raise
            self._leave()
            return act()

    def _leave(self) -> None:
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.write(file, NOTE.encode())
        except OSError:  # a run must not end for want of a place for its lines
            file = os.open(os.devnull, os.O_WRONLY)
        os.dup2(file, self.stream.fileno())
        os.close(file)


@contextmanager
def outlasting(log: Path) -> Iterator[None]:
    """Inside, stdout and stderr go on into `log` once nobody reads them."""
    before = sys.stdout, sys.stderr
    out: Any = Outlasting(sys.stdout, log)
    err: Any = Outlasting(sys.stderr, log)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
