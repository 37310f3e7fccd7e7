"""Folders for what lives no longer than its process. A lock marks one as in use; the next start removes what a kill
left. Where the file system knows no locks, nobody can tell, and what a kill left stays."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NEW_S = 60.0  # a folder younger than this may not have its lock yet


@contextmanager
def scratch(prefix: str, place: Path | None = None) -> Iterator[Path]:
    """A folder of this user alone (0700) in `place` (default: the system's temporary folder), gone after the block."""
    place = place or Path(tempfile.gettempdir())
    for stale in place.glob(f"{prefix}*/"):
        _remove_unlocked(stale)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    lock = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def _remove_unlocked(folder: Path) -> None:
    try:
        if folder.lstat().st_uid != os.getuid() or time.time() - folder.lstat().st_mtime < NEW_S:
            return
        lock = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    except OSError:  # its owner removed it
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # in use, or no locks here
        pass
    finally:
        os.close(lock)


def keep_newest(folder: Path, pattern: str, most: int) -> None:
    """Remove this user's files of the pattern, all but the newest ones."""
    own = []
    for path in folder.glob(pattern):
        try:
            if (found := path.lstat()).st_uid == os.getuid():
                own.append((found.st_mtime, path))
        except OSError:  # another process removed it
            continue
    for _, path in sorted(own)[: max(0, len(own) - most)]:
        path.unlink(missing_ok=True)
