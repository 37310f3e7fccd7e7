"""Memory that may still be taken: what the machine has left, and the control groups of this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

VERSION_2 = ("memory.max", "memory.current", "inactive_file")
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
"""Files of the limit and of what is used, and the entry of `memory.stat` for cached files, which give way."""

RELOADED = 2**35
"""Bytes of a model up to which its export is loaded into the host's memory again; so is none that would take more than
half of what is free there."""


def free_memory(root: Path = Path("/")) -> float:
    """Bytes, by /proc and /sys under `root`."""
    return min(_of_machine(root), *_of_groups(root), float("inf"))


def _of_machine(root: Path) -> float:
    try:
        lines = dict(line.split(":") for line in (root / "proc/meminfo").read_text().splitlines())
        return 2**10 * float(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):  # not Linux
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _of_groups(root: Path) -> Iterator[float]:
    """What is left to the own group and to each above it, of either version (Linux: cgroups(7)). A container may see
    its own group as the top one, under a path that it cannot see."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        limit, used, cached = VERSION_1 if controllers else VERSION_2
        own = Path(path.lstrip("/"))
        for group in (own, *own.parents):
            if ".." in group.parts:  # outside the container
                continue
            try:
                held = dict(entry.split() for entry in (top / group / "memory.stat").read_text().splitlines())
                most, now = (float((top / group / name).read_text()) for name in (limit, used))
                yield most - now + float(held[cached])
            except (OSError, KeyError, ValueError):  # no such group here, or its limit is "max"
                continue
