"""Where tokens of records lie: who makes a folder of them, and which ones no run needs any more."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dpeer.data.token_store import STORE
from dpeer.errors import DataError
from dpeer.files import file_system_now
from dpeer.integrity import Damaged, faults, parse_state

PLACE = "DPEER_TOKENS"
NAME = re.compile(r"[0-9a-f]{32}")
WAIT_S = 3600.0
"""Longest wait for another process that tokenises the same; then it is done here too, which harms nobody."""
POLL_S = 0.5
SILENT_S = 3600.0
"""What another node has begun to write is that of a killed process when it has not changed for so long."""
YOUNG_S = 86_400.0
"""Tokens that are not older may be those of a run that is about to begin."""


def place_of(output_dir: Path) -> Path:
    """The folder of all stores: DPEER_TOKENS, or one beside the runs."""
    return Path(os.environ.get(PLACE) or output_dir / "tokens")


# One process makes a store


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Wait, within bounds, until no other process makes this folder; yields whether that is certain. On a file system
    without locks, and for a lock that is another user's, nobody waits."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock: IO[str] | None = None
    with suppress(PermissionError):
        lock = (folder.parent / f".{folder.name}.lock").open("a")
    try:
        yield lock is not None and _held(lock, folder)
    finally:
        if lock:
            lock.close()


def _held(lock: IO[str], folder: Path) -> bool:
    began, told = time.monotonic(), False
    while time.monotonic() - began < WAIT_S:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not told:
                print(f"{folder}: another process tokenises these records; waiting for it.", flush=True)
            told = True
            time.sleep(POLL_S)
        except OSError:
            return False
    return False


@contextmanager
def temporary(folder: Path) -> Iterator[Path]:
    """A folder beside it, gone after the block unless it was renamed."""
    made = _beside(folder, "part")
    made.mkdir(parents=True)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def remove(folder: Path) -> None:
    """In one step for whoever opens it. Raises OSError where it may not be removed."""
    grave = _beside(folder, "damaged")
    with suppress(FileNotFoundError):  # another process was faster
        os.rename(folder, grave)
        shutil.rmtree(grave, ignore_errors=True)


def clear_left(folder: Path, held: bool) -> None:
    """Remove what killed makers of this folder have left: those of this node at once where its lock is `held`; those of
    other nodes, whose locks may not be seen here, after a while."""
    mine = f".{folder.name}.{_node()}."
    for path in left(folder.parent, folder.name):
        if (held and path.name.startswith(mine)) or _silent(path, SILENT_S):
            shutil.rmtree(path, ignore_errors=True)


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{_node()}.{secrets.token_hex(8)}.{what}")


def _node() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def left(place: Path, name: str = "*") -> list[Path]:
    """What makers of stores have not finished, or removed."""
    return [path for what in ("part", "damaged") for path in sorted(place.glob(f".{name}.*.{what}"))]


def _silent(folder: Path, seconds: float) -> bool:
    """Whether nothing in it has changed for so long, by the file system's clock."""
    try:
        changed = max(path.lstat().st_mtime for path in (folder, *folder.iterdir()))
        return file_system_now(folder.parent) - changed > seconds
    except OSError:  # its maker removed it meanwhile
        return False


# What is there


@dataclass(frozen=True, slots=True)
class Stored:
    """A store, or what is left of one. size: bytes. kept: why it stays; empty: nothing needs it."""

    path: Path
    size: int
    kept: str = ""


def stored(outputs: Sequence[Path]) -> list[Stored]:
    """All that lies where runs in these folders keep their tokens. A run that is not finished needs its store: what has
    the same records in all splits. DataError: a run does not say what it uses."""
    runs = [run for output in outputs for run in _unfinished(output)]
    found = []
    for place in dict.fromkeys(map(place_of, outputs)):
        for path in stores(place):
            splits = _splits(path)
            needed = next((str(run) for run, data in runs if splits and data == splits), "")
            young = "" if _silent(path, YOUNG_S) else "made within a day"
            found.append(Stored(path, _size(path), f"of {needed}" if needed else young))
        found += [Stored(p, _size(p), "" if _silent(p, YOUNG_S) else "perhaps being written") for p in left(place)]
    return found


def stores(place: Path) -> list[Path]:
    """Folders of whole stores."""
    return sorted(p for p in place.glob("*") if NAME.fullmatch(p.name) and p.is_dir())


def store_faults(folder: Path) -> dict[str, str]:
    """What is wrong with files of a store, by name; reads all of it."""
    try:
        return faults(folder, parse_state((folder / STORE).read_bytes())["files"])
    except (Damaged, OSError, KeyError, TypeError) as error:
        return {STORE: str(error) if isinstance(error, Damaged) else f"cannot be used ({error})"}


def _unfinished(output: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Runs, and the hash of each of their splits."""
    for manifest in sorted(output.glob("*/manifest.json")):
        try:
            state = parse_state(manifest.read_bytes())
            if "data" in state and state.get("finished") is None:
                yield manifest.parent, _hashes(state["data"])
        except (Damaged, OSError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{manifest}: {error}, so it cannot be told which tokens this run needs. Restore it, or remove the run."
            ) from error


def _splits(store: Path) -> dict[str, str]:
    """The hash of each split; empty for one that is damaged, which the next run would make again."""
    try:
        return _hashes(parse_state((store / STORE).read_bytes())["splits"])
    except (Damaged, OSError, KeyError, TypeError, AttributeError):
        return {}


def _hashes(splits: dict[str, Any]) -> dict[str, str]:
    return {name: str(about["sha256"]) for name, about in splits.items()}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
