"""Answers and the thoughts before them, where a server hands out both as one text."""

from __future__ import annotations

import re

_CLOSE = re.compile(r"</think>", re.IGNORECASE)
_TAGS = ("think", "thinking", "thought", "thoughts", "reasoning", "seed:think")
_OPENED = [
    *((re.compile(rf"\s*<{tag}>", re.IGNORECASE), re.compile(rf"</{tag}>", re.IGNORECASE)) for tag in _TAGS),
    (re.compile(r"\s*\[THINK\]"), re.compile(r"\[/THINK\]")),
    (re.compile(r"\s*◁think▷"), re.compile(r"◁/think▷")),
    (re.compile(r"\s*<\|channel\|>analysis"), re.compile(r"<\|channel\|>final<\|message\|>")),
]
"""How thoughts begin, at the start of a text only, and how they end."""


def thoughts_apart(text: str) -> tuple[str, str | None, bool]:
    """(answer, thoughts, whether the thoughts end).

    Thoughts reach to the last mark that closes them; some chat templates open them in the prompt, so that the text
    only closes them. Thoughts that never end leave no answer.
    """
    for opening, closing in _OPENED:
        if start := opening.match(text):
            ends = [match.span() for match in closing.finditer(text, start.end())]
            if not ends:
                return "", text[start.end() :].strip() or None, False
            return text[ends[-1][1] :].lstrip(), text[start.end() : ends[-1][0]].strip() or None, True
    ends = [match.span() for match in _CLOSE.finditer(text)]
    if ends:
        return text[ends[-1][1] :].lstrip(), text[: ends[-1][0]].strip() or None, True
    return text, None, True
