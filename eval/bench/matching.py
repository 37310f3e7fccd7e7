"""Answers read by rules: the letter of a choice, and whether a text names an answer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_SAID = re.compile(
    r"(?i:answer|option|choice)(?: is)?:?\s*[*_]*(?:\(([A-Za-z])\)|([A-HJ-Z])\b(?!')|([a-z])\s*(?:[.,)*_]|$))"
)
_IN_BRACKETS = re.compile(r"(?<!\w)\(([A-Za-z])\)")  # not the plural of "answer(s)"
_ALONE = re.compile(r"\s*\(?([A-Za-z])\)?(?:[.):\s]|$)")
_EDGE = r"(?<![0-9a-z]){}(?![0-9a-z])"


def letter_of(answer: str) -> str | None:
    """The choice that a text names: the last "the answer is B", else the last "(B)", else a letter that stands alone at
    its beginning; None where it names none."""
    for pattern in (_SAID, _IN_BRACKETS):
        if found := list(pattern.finditer(answer)):
            return str(found[-1][found[-1].lastindex or 0]).upper()
    first = _ALONE.match(answer)
    alone = first is not None and (len(answer.strip()) <= 3 or answer.lstrip()[1:2] in (")", ".", ":"))
    return first[1].upper() if first is not None and alone else None


def plain(text: str) -> str:
    """Lower case, one blank between words, without accents and marks at the ends."""
    folded = unicodedata.normalize("NFKD", text)
    folded = "".join(c for c in folded if not unicodedata.combining(c)).lower()
    return " ".join(folded.split()).strip(" .,;:!?\"'()")


def names(text: str, answers: Sequence[str]) -> bool:
    """Whether a text holds one of some answers as whole words."""
    said = plain(text)
    return any(re.search(_EDGE.format(re.escape(plain(a))), said) for a in answers if plain(a))
