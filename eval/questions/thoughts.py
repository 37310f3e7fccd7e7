"""Answers and the thoughts before them, where a server hands out both as one text."""

from __future__ import annotations

import re
from typing import Literal

Bare = Literal["never", "alone", "anywhere"]
"""Where a mark that closes thoughts counts though none opened them: nowhere (who writes the prompt knows), on a line of
its own, as models write it that do not speak of the mark, or anywhere (the recipe says that the model thinks)."""
OPENS = "<think>"
_CLOSE = re.compile(r"</think>", re.IGNORECASE)
_ALONE = re.compile(r"^[ \t]*</think>[ \t]*$", re.IGNORECASE | re.MULTILINE)
_OPEN = re.compile(r"<think>", re.IGNORECASE)
_OPENED_LAST = re.compile(r"<think>\s*\Z", re.IGNORECASE)
_TAGS = ("think", "thinking", "thought", "thoughts", "reasoning", "seed:think")
_OPENED = [
    *((re.compile(rf"\s*<{tag}>", re.IGNORECASE), re.compile(rf"</{tag}>", re.IGNORECASE)) for tag in _TAGS),
    (re.compile(r"\s*\[THINK\]"), re.compile(r"\[/THINK\]")),
    (re.compile(r"\s*◁think▷"), re.compile(r"◁/think▷")),
    (re.compile(r"\s*<\|channel\|>analysis"), re.compile(r"<\|channel\|>final<\|message\|>")),
]
"""How thoughts begin, at the start of a text only, and how they end."""


def opened(prompt: str) -> str:
    """The mark that a prompt ends with and that opens the thoughts of the reply; empty without one."""
    return OPENS if _OPENED_LAST.search(prompt) else ""


def thoughts_apart(text: str, bare: Bare = "anywhere") -> tuple[str, str | None, bool]:
    """(answer, thoughts, whether the thoughts end).

    Thoughts reach to the last mark that closes them; some chat templates open them in the prompt, so that the text
    only closes them (`bare`). Thoughts that never end leave no answer.
    """
    for opening, closing in _OPENED:
        if start := opening.match(text):
            ends = [match.span() for match in closing.finditer(text, start.end())]
            if not ends:
                return "", text[start.end() :].strip() or None, False
            return text[ends[-1][1] :].lstrip(), text[start.end() : ends[-1][0]].strip() or None, True
    if bare == "never":
        return text, None, True
    ends = [match.span() for match in (_CLOSE if bare == "anywhere" else _ALONE).finditer(text)]
    if not ends or _OPEN.search(text, 0, ends[-1][0]):
        return text, None, True
    return text[ends[-1][1] :].lstrip(), text[: ends[-1][0]].strip() or None, True
