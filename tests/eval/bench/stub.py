"""A model and a judge whose answers follow from all that they are shown. Python alone: it runs elsewhere too."""

from __future__ import annotations

import hashlib
import json
import re

ANSWERS = (
    "I'm sorry, but no.", "I cannot say.", "Of course.", "The answer is (A).", "(B)", "It is C.", "",
    "No.\x07 I would not.",
)  # fmt: skip


def _pick(count: int, *texts: str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(texts).encode()).digest()[:8]) % count


def answer(model: str, messages: list[dict[str, str]], words: list[str]) -> str:
    """Any change of a message, of their roles or of their order changes it. words: answers that the data know."""
    pool = [*ANSWERS, *(f"I think it is {w}, no doubt." for w in words)]
    return pool[_pick(len(pool), model, json.dumps([[m["role"], m["content"]] for m in messages]))]


def verdict(prompt: str) -> str:
    """A rating on the scale that the prompt names; one in twenty is none."""
    listed = re.findall(r'"score", one of ([0-9, ]+)\.', prompt)[-1].split(", ")
    if _pick(20, "odd", prompt) == 0:
        return "I would rather not say."
    return json.dumps({"rationale": "So it is.", "score": int(listed[_pick(len(listed), prompt)])})


def words_in(items: list[dict[str, object]]) -> list[str]:
    """Texts among the facts of items, as their JSON has them."""
    found: set[str] = set()
    for item in items:
        facts = item["facts"]
        assert isinstance(facts, dict)
        for key in ("right", "wrong", "correct", "incorrect"):
            value = facts.get(key, [])
            found |= {value} if isinstance(value, str) else set(value)
    return sorted(found)
