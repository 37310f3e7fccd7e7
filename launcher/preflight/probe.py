"""The eyes of the checks on one node: what it has, sees, may write and can reach."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from dpeer.files import PACKAGE
from dpeer.launcher.nvidia import cards, gpus
from dpeer.training.run_dir import PACKAGES
from dpeer.versions import package_version

CONNECT_S = 5.0
VISIBLE_S = 20.0  # network file systems show a new file to other nodes within their attribute cache's time
Facts = dict[str, Any]


def _gpu_count() -> int:
    """What nvidia-smi lists; where it is absent, as in some containers, what the kernel module has seen."""
    if shutil.which("nvidia-smi"):
        return len(gpus())
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


class Probe:
    """Lives on one node for the length of the checks."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None

    def facts(self, folder: str, output: str, inputs: Sequence[str]) -> Facts:
        """`folder`: the driver's working directory, `output`: the folder of all runs, `inputs`: files of the recipe."""
        facts: Facts = {
            "host": socket.gethostname(),
            "versions": versions(),
            "source": source_hash(),
            "gpus": _gpu_count(),
            "cards": cards(),
            "memory": psutil.virtual_memory().total,
            "available": psutil.virtual_memory().available,
            "entered": os.path.isdir(folder) and os.access(folder, os.X_OK),
        }
        if facts["entered"]:
            os.chdir(folder)
        facts["missing"] = [path for path in inputs if not os.path.exists(path)]
        there = next(p for p in (Path(output), *Path(output).parents) if p.exists())
        return facts | {"free": shutil.disk_usage(there).free}

    def clock(self) -> float:
        return time.time()

    def write(self, folder: str, name: str) -> str | None:
        """Leave a file; returns why that did not work."""
        try:
            with (Path(folder) / name).open("w") as stream:
                stream.write(name)
                stream.flush()
                os.fsync(stream.fileno())
        except FileNotFoundError:
            return None  # not the folder that the driver made; `unseen` tells
        except OSError as error:
            return error.strerror
        return None

    def unseen(self, folder: str, names: Sequence[str]) -> list[str]:
        """Which of the files do not appear here in time."""
        deadline = time.monotonic() + VISIBLE_S
        while True:
            try:
                here = {path.name for path in Path(folder).iterdir()}
            except OSError:
                here = set()
            left = [name for name in names if name not in here]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.2)

    def listen(self, address: str) -> int:
        self._listener = socket.create_server((address, 0))
        return int(self._listener.getsockname()[1])

    def unreachable(self, targets: Sequence[tuple[str, int]]) -> dict[tuple[str, int], str]:
        """Which of the addresses take no connection from here, and why."""
        return unreachable(targets)


def unreachable(targets: Sequence[tuple[str, int]]) -> dict[tuple[str, int], str]:
    def attempt(target: tuple[str, int]) -> str:
        try:
            socket.create_connection(target, CONNECT_S).close()
        except OSError as error:
            return error.strerror or "timed out"
        return ""

    with ThreadPoolExecutor(32) as pool:
        answers = zip(targets, pool.map(attempt, targets), strict=True)
    return {target: why for target, why in answers if why}


def versions() -> dict[str, str | None]:
    return {"python": platform.python_version()} | {p: package_version(p) for p in PACKAGES}


def source_hash() -> str:
    """sha256 (hex) of dpeer's own code and DeepSpeed settings: a version number does not tell two checkouts apart."""
    digest = hashlib.sha256()
    folders = os.walk(PACKAGE, followlinks=True)  # in a checkout, some of its folders are links
    files = (Path(folder) / name for folder, _, names in folders for name in names if name.endswith((".py", ".json")))
    for path in sorted(files):
        digest.update(str(path.relative_to(PACKAGE)).encode() + path.read_bytes())
    return digest.hexdigest()
