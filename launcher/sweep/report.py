"""`dpeer sweep report`: what the finished cells say, as a page with tables beside it."""

from __future__ import annotations

from pathlib import Path

from launcher.sweep.folder import SweepFolder


def write_report(folder: SweepFolder, abilities: Path | None = None) -> Path:
    return folder.path / "sweep.html"
