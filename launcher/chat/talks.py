"""Conversations with two models side by side, of which the page need not know which is which."""

from __future__ import annotations

import hashlib
import json
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST = 500
"""Conversations that are remembered; the oldest go first."""


@dataclass(slots=True)
class Talk:
    """models: whose replies stand in each column. said: the person's messages; replies: per column, an answer to each
    of them, as far as they have come."""

    id: str
    models: tuple[str, ...]
    blind: bool
    said: list[str] = field(default_factory=list)
    replies: list[list[str]] = field(default_factory=list)
    revealed: bool = False
    voted: set[str] = field(default_factory=set)
    sample: int | None = None
    """Of the votes on what has been said so far; None before the first."""

    def messages(self, column: int) -> list[dict[str, str]]:
        """What the model of a column is asked next."""
        told: list[dict[str, str]] = []
        for k, text in enumerate(self.said):
            told.append({"role": "user", "content": text})
            if k < len(self.replies[column]):
                told.append({"role": "assistant", "content": self.replies[column][k]})
        return told

    def ask(self, text: str) -> None:
        self.said.append(text)
        self.voted.clear()
        self.sample = None

    @property
    def complete(self) -> bool:
        """Whether every column has answered everything."""
        return bool(self.said) and all(len(replies) == len(self.said) for replies in self.replies)

    @property
    def item(self) -> str:
        """The same for the same messages, whoever answers: votes about them are about one item."""
        return hashlib.sha256(json.dumps(self.said).encode()).hexdigest()[:16]

    @property
    def names(self) -> list[str] | None:
        """Of the columns; None while nobody may know."""
        return list(self.models) if self.revealed or not self.blind else None

    def whole(self, column: int) -> str:
        """One column as text: the answer alone, or the conversation as JSON."""
        return self.replies[column][0] if len(self.said) == 1 else json.dumps(self.messages(column), ensure_ascii=False)

    def export(self) -> dict[str, Any]:
        columns = [{"model": name, "messages": self.messages(k)} for k, name in enumerate(self.names or [])]
        return {
            "item": self.item,
            "columns": columns or [{"messages": self.messages(k)} for k in range(len(self.models))],
        }


class Talks:
    def __init__(self, models: Sequence[str], seed: int | None = None) -> None:
        self.models = tuple(models)
        self.known: dict[str, Talk] = {}
        self._random = random.Random(seed)

    def begin(self, models: Sequence[str], blind: bool) -> Talk:
        """A new conversation; of a blind one the columns are shuffled. ValueError: a model that is not served."""
        if unknown := [name for name in models if name not in self.models]:
            raise ValueError(f"no model is called {unknown[0]}")
        if not 1 <= len(models) <= 2 or len(set(models)) != len(models):
            raise ValueError("a conversation is with one model, or with two different ones")
        order = list(models)
        if blind:
            self._random.shuffle(order)
        talk = Talk(secrets.token_urlsafe(9), tuple(order), blind and len(order) == 2, replies=[[] for _ in order])
        self.known[talk.id] = talk
        while len(self.known) > MOST:
            self.known.pop(next(iter(self.known)))
        return talk

    def __getitem__(self, id_: object) -> Talk:
        talk = self.known.get(str(id_))
        if talk is None:
            raise ValueError("this conversation is no longer known; begin a new one")
        return talk


def text_of(request: Mapping[str, Any], name: str, most: int = 100_000) -> str:
    value = request.get(name)
    if not isinstance(value, str) or not value.strip() or len(value) > most:
        raise ValueError(f"{name} must be text of 1 to {most:,} characters")
    return value
