"""The PersonaKnob record: a prompt, its active persona dimensions, and responses with what each fails."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Response:
    """One candidate answer; `fails` is the set of active dimensions that it fails (empty for golden)."""

    text: str
    fails: frozenset[str]


@dataclass(frozen=True, slots=True)
class Record:
    """`mask`: active dimensions, in the data set's dimension order. `source`: "file:row" for messages. `weight`: how
    often it is drawn in training, relative to 1."""

    prompt: tuple[Message, ...]
    mask: tuple[str, ...]
    responses: tuple[Response, ...]
    source: str
    weight: float = 1.0

    @property
    def golden(self) -> int:
        """Index of the first response that fails nothing."""
        return next(i for i, r in enumerate(self.responses) if not r.fails)

    @property
    def key(self) -> str:
        """Content hash (sha256, hex): equal for equal prompt, mask and responses, wherever they came from."""
        content = [
            [[m.role, m.content] for m in self.prompt],
            list(self.mask),
            [[r.text, sorted(r.fails)] for r in self.responses],
        ]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Reading:
    """How one source was read. pairs: the comparisons that it states; skipped: (reason, how many of them are no edge,
    where first), most first."""

    source: str
    words: str
    pairs: int = 0
    skipped: tuple[tuple[str, int, str], ...] = ()

    def lines(self) -> list[str]:
        """In words: what the columns were taken for, and what became no edge."""
        lost = sum(count for _, count, _ in self.skipped)
        reasons = [f"  {count:,} {reason} (first: {where})" for reason, count, where in self.skipped]
        told = (
            [f"{lost:,} of {self.pairs:,} comparisons are not attributable to one dimension:", *reasons] if lost else []
        )
        return [f"{self.source}: read as {self.words}", *told]


@dataclass(frozen=True, slots=True)
class DataSet:
    """Records with the dimensions that occur in them, in a fixed order. `reading`: of sources in other layouts than
    dpeer's own."""

    dimensions: tuple[str, ...]
    records: tuple[Record, ...]
    reading: tuple[Reading, ...] = ()

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256(json.dumps(self.dimensions).encode())
        for record in self.records:
            digest.update(record.key.encode())
        return digest.hexdigest()
