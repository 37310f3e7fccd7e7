"""A lock per piece of work that several drivers may want, on one machine or on several that share a file system."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpeer.disk import GONE, disk_fault, remedy
from dpeer.errors import CheckpointError
from dpeer.files import clear_temporary, file_system_now

LEASE_S = float(os.environ.get("DPEER_LEASE_S") or 180)
"""Silence after which an owner on another machine is taken for dead; far above what file systems cache times for."""
BEAT_S = LEASE_S / 12
POLL_S = 1.0


@dataclass(frozen=True)
class Owner:
    host: str
    machine: str  # boot and process-id namespace: whether a process id can be looked up from here
    pid: int
    started: str
    token: str

    @property
    def place(self) -> str:
        return f"host {self.host}, pid {self.pid}" if self.pid else "an unknown driver (the lock file is damaged)"


DAMAGED = Owner("", "", 0, "", "")
"""Who holds a lock whose file is half-written: somebody unknown, until its lease has passed."""


def holder(path: Path) -> Owner | None:
    """Who holds the lock; None if nobody does or its owner is dead."""
    owner = read_owner(path) or (DAMAGED if path.exists() else None)
    return owner if owner and _alive(path, owner) else None


def _alive(path: Path, owner: Owner | None) -> bool:
    """On this machine: its process runs. Elsewhere: it touched the lock within LEASE_S, by the file system's clock."""
    if owner and owner.machine == machine():
        return started(owner.pid) == owner.started
    try:
        return file_system_now(path.parent) - path.stat().st_mtime < LEASE_S
    except FileNotFoundError:
        return False


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Yields whether the lock is ours for the length of the block. Never waits.

    While it is ours a thread touches it. A process that finds that it has lost its lock, because it was suspended for
    so long that another took over, ends at once: two writers would ruin the work.
    """
    token = _take(path)
    if token is None:
        yield False
        return
    done = threading.Event()
    threading.Thread(target=_beat, args=(path, token, done), daemon=True).start()
    try:
        yield True
    finally:
        done.set()
        with contextlib.suppress(OSError), _guard(path.parent):  # a lost disk has its own message
            if (owner := read_owner(path)) and owner.token == token:
                path.unlink()


@contextmanager
def exclusive(path: Path, waiting: Callable[[Owner], None]) -> Iterator[None]:
    """Wait for the lock; `waiting` is told once who holds it."""
    announced = False
    while True:
        with claim(path) as ours:
            if ours:
                yield
                return
        if not announced and (owner := holder(path)):
            waiting(owner)
            announced = True
        time.sleep(POLL_S)


@contextmanager
def sole_owner(path: Path, waiting: Callable[[Owner], None]) -> Iterator[Owner | None]:
    """Yields None when the lock is ours for the length of the block, else its owner, who lives.

    An owner on another machine may have died with it: `waiting` is told once, and the lock is ours after LEASE_S of
    silence; a sign of life, which comes every BEAT_S, ends the wait.
    """
    first: tuple[str, float] | None = None
    while True:
        with claim(path) as ours:
            if ours:
                yield None
                return
        if owner := holder(path):
            sign = _sign(path, owner)
            if owner.machine == machine() or (first and sign and sign != first):
                yield owner
                return
            if not first:
                first = sign
                waiting(owner)
        time.sleep(POLL_S)


def _sign(path: Path, owner: Owner) -> tuple[str, float] | None:
    """What changes when an owner touches its lock; None where it is gone meanwhile."""
    try:
        return owner.token, path.stat().st_mtime
    except FileNotFoundError:
        return None


def _take(path: Path) -> str | None:
    """Create the lock, or replace that of a dead owner; returns our token, or None if a living owner has it."""
    pid = os.getpid()
    owner = Owner(socket.gethostname(), machine(), pid, started(pid) or "", secrets.token_hex(16))
    ours = path.with_name(f".{path.name}.{owner.token}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ours.write_text(json.dumps(owner.__dict__))
    except OSError as error:
        fault = disk_fault(error)
        what = f"cannot be written ({error.strerror})" if fault is None or fault in GONE else remedy(fault)
        raise CheckpointError(f"{path.parent}: {what}, or choose another output_dir.") from error
    try:
        with _guard(path.parent):
            for rest in (f".{path.name}.*", ".now-*"):  # of drivers killed while they took it
                clear_temporary(path.parent, rest, LEASE_S)
            if path.exists() and not _alive(path, dead := read_owner(path)):
                _remove_dead(path, dead)
            _link(ours, path)
        return owner.token
    except FileExistsError:
        return None
    finally:
        ours.unlink(missing_ok=True)


def _link(ours: Path, path: Path) -> None:
    """Atomic on network file systems too; FileExistsError if the lock exists. Some file systems know no hard links."""
    try:
        os.link(ours, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        with path.open("x") as stream:
            stream.write(ours.read_text())


def _remove_dead(path: Path, judged: Owner | None) -> None:
    """Without a working guard another process may have taken the lock since it was judged: then it goes back."""
    grave = path.with_name(f".{path.name}.{secrets.token_hex(8)}.dead")
    try:
        os.rename(path, grave)
    except FileNotFoundError:
        return
    if read_owner(grave) != judged:
        with contextlib.suppress(FileExistsError):
            os.link(grave, path)
    grave.unlink()


def _beat(path: Path, token: str, done: threading.Event) -> None:
    while not done.wait(BEAT_S):
        try:
            owner = read_owner(path)
            if owner and owner.token == token:
                os.utime(path)
            elif not done.is_set():
                print(f"{path}: this process has lost its lock and ends; another driver took over.", flush=True)
                os._exit(1)
        except OSError:  # the file system is away for a moment; the lease is long
            continue


@contextmanager
def _guard(folder: Path) -> Iterator[None]:
    """One process at a time, where the file system can do that; otherwise `_remove_dead` is careful by itself."""
    with (folder / ".guard").open("a") as stream:
        with contextlib.suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def read_owner(path: Path) -> Owner | None:
    """Whoever took the lock last, living or not; None if it was given back."""
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        return Owner(**values)
    except (FileNotFoundError, ValueError, TypeError):
        return None


def machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def started(pid: int) -> str | None:
    """When a process began, in ticks since boot; None if it has ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else rest[18]
