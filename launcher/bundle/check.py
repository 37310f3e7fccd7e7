"""One thing that was looked at in a bundle, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dpeer.escape import visible

State = Literal["verified", "differs", "not verified"]
SHOWN = 3
"""Differences of a kind that are named."""


@dataclass(frozen=True, slots=True)
class Check:
    """part: of the bundle; says: what was compared, how it differs, or why nobody can tell; one line without controls,
    since a forger chose some of its words."""

    part: str
    state: State
    says: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "says", " ".join(visible(self.says).split()))


@dataclass(frozen=True, slots=True)
class Place:
    """A part of the bundle under examination. same: pages were written by the versions that are installed here;
    same_words: at least by those on which their words depend."""

    name: str
    folder: Path
    scratch: Path
    same: bool
    same_words: bool
