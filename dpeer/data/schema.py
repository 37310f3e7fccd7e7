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
    """`mask`: active dimensions, in the data set's dimension order. `source`: "file:row" for messages."""

    prompt: tuple[Message, ...]
    mask: tuple[str, ...]
    responses: tuple[Response, ...]
    source: str

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
class DataSet:
    """Records with the dimensions that occur in them, in a fixed order."""

    dimensions: tuple[str, ...]
    records: tuple[Record, ...]

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256(json.dumps(self.dimensions).encode())
        for record in self.records:
            digest.update(record.key.encode())
        return digest.hexdigest()
