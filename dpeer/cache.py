"""The folder for what can be made again: downloads, compiled programs, results of checks."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """DPEER_CACHE; else .cache in the working directory where there is one; else ~/.cache/dpeer."""
    if given := os.environ.get("DPEER_CACHE"):
        return Path(given).absolute()
    here = Path(".cache").absolute()
    return here if here.is_dir() else Path.home() / ".cache" / "dpeer"
