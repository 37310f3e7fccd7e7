"""One life of a `dpeer` command: a process forked from one that has imported everything already.

Importing takes longer than the toy's training. The process is a real one, with a session of its own, and may be killed.
"""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from tests.faults.trap import Trap, install


def live(command: tuple[str, ...], place: Path, says: Connection, trap: Trap | None, clock: float) -> None:
    """`command`: train, with what torchrun's entry takes, or one of dpeer. `clock`: seconds by which time is wrong."""
    from tests.faults import programs  # imported before the fork

    os.setsid()
    os.dup2(says.fileno(), 1)
    os.dup2(says.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.chdir(place)
    (place / "tmp").mkdir(exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(place / "tmp")
    if clock:
        true = time.time
        time.time = lambda: true() + clock
    if trap:
        install(trap, place)
    try:
        match command:
            case ("lab", folder):
                programs.build_lab(Path(folder), n_train=24, n_heldout=8)
            case ("train", *arguments):
                sys.exit(programs.torchrun.main(arguments))
            case _:
                programs.cli.app(command)
    finally:
        atexit._run_exitfuncs()
