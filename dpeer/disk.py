"""Faults of disks: told from bugs, and what helps against each."""

from __future__ import annotations

import errno
import os
import re

FULL = {errno.ENOSPC, errno.EDQUOT}
LIMITED = {errno.EFBIG}
REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}
FAULTS = FULL | LIMITED | REFUSED | GONE | {errno.EIO}
WRITER = re.compile("PytorchStreamWriter|enforce fail at inline_container")


def disk_fault(error: BaseException) -> int | None:
    """The errno of a disk that fails an access, whichever library reports it; None: something else.

    safetensors hides it in its message. torch's writer does not know it; nearly always the disk is full.
    """
    if isinstance(error, OSError):
        return error.errno if error.errno in FAULTS else None
    if type(error).__name__ == "SafetensorError" and (found := re.search(r"\(os error (\d+)\)", str(error))):
        return int(found[1]) if int(found[1]) in FAULTS else None
    return errno.ENOSPC if isinstance(error, RuntimeError) and WRITER.search(str(error)) else None


def remedy(fault: int) -> str:
    """What is wrong, and what to do before the same is tried again, as the rest of a sentence after the path."""
    reason = os.strerror(fault)
    if fault in FULL:
        return f"cannot be written ({reason}): make room there"
    if fault in LIMITED:
        return f"cannot be written ({reason}): raise the limit on the size of files (`ulimit -f unlimited`)"
    if fault in REFUSED:
        return f"may not be written ({reason}): permit writing there (owner and mode of the folder, read-only mount)"
    if fault in GONE:
        return f"is gone ({reason}): restore it, or mount its disk again"
    return f"cannot be read or written ({reason}): the disk itself fails; look at the system's log"
