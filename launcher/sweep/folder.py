"""The folder of a sweep: the manifest of its cells, their run folders, and what is known of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpeer.config_io import resolved
from dpeer.errors import CheckpointError, ConfigError
from dpeer.integrity import read_state, write_state
from dpeer.json_safe import json_safe
from dpeer.launcher.lock import Owner, holder
from dpeer.launcher.sweep.spec import Cell, Sweep
from dpeer.training.run_dir import RunDir, now

Kind = Literal["finished", "running", "failed", "stopped", "waiting"]
MANIFEST = "sweep.json"


@dataclass(frozen=True)
class State:
    """`stopped`: begun, not finished, and nobody is at it. `reason` belongs to `failed`, `owner` to `running`."""

    kind: Kind
    reason: str = ""
    owner: Owner | None = None


class SweepFolder:
    """output_dir/NAME: sweep.json, one run folder per cell, reference_cache/, locks/, failures/, logs/, sweep.html."""

    def __init__(self, path: Path) -> None:
        self.path, self.manifest = path, path / MANIFEST
        self.logs, self.replaced = path / "logs", path / "replaced"
        self.reference_lock = path / "locks" / "reference.json"

    def lock(self, name: str) -> Path:
        return self.path / "locks" / f"{name}.json"

    def failure(self, name: str) -> Path:
        return self.path / "failures" / f"{name}.json"

    def run(self, name: str) -> RunDir:
        return RunDir(self.path / name)

    def write_manifest(self, sweep: Sweep, cells: Sequence[Cell]) -> list[str]:
        """Write the cells down; returns the names of runs whose cells only an earlier version of the sweep file had.

        Equal for every driver of the same file, so that array tasks may all write it.
        """
        content: dict[str, Any] = {
            "name": sweep.name,
            "recipe": sweep.recipe,
            "grid": list(sweep.grid),
            "prompts": str(sweep.prompts) if sweep.prompts else None,
            "cells": [
                {"index": c.index, "id": c.id, "name": c.name, "label": c.label, "seed": c.seed, "values": c.values}
                | {"config": resolved(c.config)}
                for c in cells
            ],
        }
        before = self.read_manifest() if self.manifest.exists() else None
        content = json_safe(content)
        if before != json.loads(json.dumps(content)):
            write_state(self.manifest, content)
        gone = {c["name"] for c in (before or content)["cells"]} - {c.name for c in cells}
        return sorted(name for name in gone if (self.path / name).exists())

    def read_manifest(self) -> dict[str, Any]:
        if not self.manifest.exists():
            raise ConfigError(
                f"{self.path}: no {MANIFEST} is there, so no sweep has begun in this folder. Start it with "
                "`dpeer sweep run FILE`."
            )
        return read_state(self.manifest, "Delete it; `dpeer sweep run FILE` writes it again.", ConfigError)

    def state(self, name: str) -> State:
        run = self.run(name)
        try:
            if run.finished:
                return State("finished")
            if owner := holder(self.lock(name)):
                return State("running", owner=owner)
            if self.failure(name).exists():
                failure = read_state(self.failure(name), "Delete it; the cell is tried again.")
                return State("failed", reason=str(failure["reason"]))
        except CheckpointError as damage:
            return State("failed", reason=str(damage))
        return State("stopped" if run.manifest.exists() else "waiting")

    def fail(self, name: str, reason: str, attempts: int) -> None:
        write_state(self.failure(name), {"reason": reason, "attempts": attempts, "time": now()})

    def forgive(self, name: str) -> None:
        """Forget a failure: the cell may be tried again."""
        self.failure(name).unlink(missing_ok=True)

    def set_aside(self, name: str) -> Path | None:
        """Move a cell's run folder out of the way; returns where it went."""
        source = self.path / name
        if not source.exists():
            return None
        number = 1 + len(list(self.replaced.glob(f"{name}.*")))
        self.replaced.mkdir(exist_ok=True)
        return Path(shutil.move(source, self.replaced / f"{name}.{number}"))
