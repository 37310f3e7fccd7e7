"""The PersonaKnob record: a prompt, its active persona dimensions, and responses with what each fails."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any


def _opened(extra: str) -> dict[str, Any]:
    return json.loads(extra) if extra else {}


@dataclass(frozen=True, slots=True)
class Message:
    """`extra`: what else it holds, as JSON: `reasoning`, `tool_calls`, and of a tool `tool_call_id`, `name`."""

    role: str
    content: str
    extra: str = ""

    @property
    def more(self) -> dict[str, Any]:
        return _opened(self.extra)


@dataclass(frozen=True, slots=True)
class Response:
    """One candidate answer; `fails` is the set of active dimensions that it fails (empty for golden). `extra`: its
    `reasoning` and `tool_calls`, as JSON."""

    text: str
    fails: frozenset[str]
    extra: str = ""

    @property
    def more(self) -> dict[str, Any]:
        return _opened(self.extra)

    @property
    def whole(self) -> str:
        """All that it says, to tell it from others."""
        return f"{self.extra} {self.text}".strip()


@dataclass(frozen=True, slots=True)
class Record:
    """`mask`: active dimensions, in the data set's dimension order. `source`: "file:row" for messages. `weight`: how
    often it is drawn in training, relative to 1. `tools`: schemas of what may be called, as the JSON of a list."""

    prompt: tuple[Message, ...]
    mask: tuple[str, ...]
    responses: tuple[Response, ...]
    source: str
    weight: float = 1.0
    tools: str = ""

    @property
    def golden(self) -> int:
        """Index of the first response that fails nothing."""
        return next(i for i, r in enumerate(self.responses) if not r.fails)

    @property
    def key(self) -> str:
        """Content hash (sha256, hex): equal for equal prompt, mask and responses, wherever they came from."""
        content = [
            [[m.role, m.content, *filter(None, [m.extra])] for m in self.prompt],
            list(self.mask),
            [[r.text, sorted(r.fails), *filter(None, [r.extra])] for r in self.responses],
            *filter(None, [self.tools]),
        ]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Reading:
    """How one source was read. pairs: the comparisons that it states; skipped: (reason, how many of them are no edge,
    where first), most first. ranked: ratings rank many responses to a prompt."""

    source: str
    words: str
    pairs: int = 0
    skipped: tuple[tuple[str, int, str], ...] = ()
    ranked: bool = False

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
