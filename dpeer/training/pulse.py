"""What a rank is doing, for whoever waits on it: read by a health thread while the main thread is busy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Pulse:
    """phase: in words. step: optimizer steps done. beats: grows with every phase and every finished pack.

    beating: in a phase whose packs beat, so that silence means a stall; loading and saving have nothing to count.
    """

    phase: str = "ready"
    step: int = 0
    beats: int = 0
    beating: bool = False

    def enter(self, phase: str, *, beating: bool = False) -> None:
        self.phase, self.beating = phase, beating
        self.beats += 1

    def beat(self) -> None:
        self.beats += 1

    @contextmanager
    def during(self, phase: str, *, beating: bool = False) -> Iterator[None]:
        """The phase of a block; the one before comes back at its end."""
        before = self.phase, self.beating
        self.enter(phase, beating=beating)
        try:
            yield
        finally:
            self.enter(before[0], beating=before[1])
