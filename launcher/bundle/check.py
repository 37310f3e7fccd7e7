"""One thing that was looked at in a bundle, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["verified", "differs", "not verified"]
SHOWN = 3
"""Differences of a kind that are named."""


@dataclass(frozen=True, slots=True)
class Check:
    """part: of the bundle; says: what was compared, how it differs, or why nobody can tell."""

    part: str
    state: State
    says: str


@dataclass(frozen=True, slots=True)
class Place:
    """A part of the bundle under examination. same: pages were written by the versions that are installed here."""

    name: str
    folder: Path
    scratch: Path
    same: bool
