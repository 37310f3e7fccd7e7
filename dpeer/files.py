"""Files that are either whole or absent."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from dpeer.json_safe import json_safe

PACKAGE = Path(__file__).parent
"""The folder of the installed package, with everything that it ships."""
ROOM = 1 << 17
"""Bytes that a file of exported weights keeps for its header; tensors whose names fill it end the file."""
SILENT_S = 180.0
"""After so long without a change, a temporary file in a folder that runs share is taken for that of a killed one."""


def write_bytes(path: Path, content: bytes, mode: int | None = None) -> None:
    """Replace a file in one step: whatever interrupts this, there is the old one or the new one, on disk. Without a
    mode it gets that of any new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # process ids repeat on other nodes
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if mode is not None:
            temporary.chmod(mode)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def clear_temporary(folder: Path, pattern: str = ".*.tmp", silent_s: float = 0.0) -> None:
    """Remove what killed writers have left in a folder. Where others may be writing, only what has not changed for
    `silent_s` seconds, by the file system's clock."""
    for path in folder.glob(pattern):
        with suppress(OSError):  # another process removed it, or it is not ours
            if silent_s and file_system_now(folder) - path.lstat().st_mtime < silent_s:
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def file_system_now(folder: Path) -> float:
    """The file system's own time: clocks of machines differ."""
    probe = folder / f".now-{secrets.token_hex(8)}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(json_safe(value), indent=1, allow_nan=False) + "\n")


def sync(path: Path) -> None:
    """Force what was appended to a file to disk."""
    with path.open("a") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Force to disk which files a folder has."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems that do this by themselves
            raise
    finally:
        os.close(descriptor)


def follow_umask(path: Path) -> None:
    """Give a file, or a folder with all that is in it, the modes that the umask asks for: some libraries write 0600."""
    for place in (path, *path.rglob("*")):
        if not place.is_symlink():
            place.chmod((0o777 if place.is_dir() else 0o666) & ~_umask())


def _umask() -> int:
    """Of this process, without changing it: other threads write files meanwhile."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("\nUmask:")[2].split()[0], 8)
    except (OSError, IndexError):
        os.umask(mask := os.umask(0o077))
        return mask
