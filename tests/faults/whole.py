"""Plays the whole catalogue, or rows of it, and writes what was seen into docs/faults.md."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import dpeer
from tests.faults import page
from tests.faults.catalogue import CATALOGUE, Fault, play
from tests.faults.stage import Stage, can_mount


def run(only: Sequence[str] | None = None, folder: Path | None = None) -> int:
    """Exit code: 1 when something did not hold."""
    faults = [fault for fault in CATALOGUE if fault.name.startswith(tuple(only or [""]))]
    if not faults:
        kinds = ", ".join(dict.fromkeys(fault.kind for fault in CATALOGUE))
        print(f"no fault begins with {' or '.join(only or [])}: give a name of docs/faults.md, or a kind ({kinds})")
        return 1
    place = folder or Path(tempfile.mkdtemp(prefix="dpeer-faults-"))
    place.mkdir(exist_ok=True)
    began, stage, seen = time.monotonic(), Stage(place), dict[str, str]()
    possible = {"": True, "mount": can_mount(), "cmdstan": stage.cmdstan is not None}
    for fault in faults:
        if possible[fault.needs]:
            seen[fault.name] = _play(fault, stage)
        else:
            print(f"left out: {fault.name} (needs {fault.needs})", flush=True)
    held = sum(seen[fault.name] == fault.promised for fault in faults if fault.name in seen)
    print(f"{held} of {len(seen)} held; {len(faults) - len(seen)} left out; {time.monotonic() - began:.0f} s")
    page.write(seen, dpeer.__version__)
    if folder is None:
        shutil.rmtree(place)
    return int(held < len(seen))


def _play(fault: Fault, stage: Stage) -> str:
    begins, mounted, began = stage.begin(fault.begins), fault.needs == "mount", time.monotonic()
    played = stage.open(fault.name.replace(": ", "-").replace(" ", "-"), begins, mounted)
    try:
        seen = play(fault, played)
    except Exception as error:  # the row has failed; the others are still played
        seen = f"{type(error).__name__}: {error}"
    mark = "held" if seen == fault.promised else "NOT HELD"
    print(f"{mark:8} {time.monotonic() - began:5.0f} s  {fault.name}: {seen[:1500]}", flush=True)
    if seen == fault.promised:
        stage.close(played, mounted)
    return seen
