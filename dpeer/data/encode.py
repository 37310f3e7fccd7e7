"""Texts that begin alike to token ids, each beginning once; the same ids as the tokenizer gives for whole texts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]
COMPARED = 3
"""Groups at the start of every batch that are also encoded whole: after one difference all texts are."""


class Encoder:
    """Encodes groups of texts: a prompt, and several times the same prompt with a response.

    A control token ends a piece of text: tokenizers split at it before they do anything else. So what stands before
    one in the prompt is encoded once per group, and what follows together with that token, so that it never stands
    first. A token serves as a cut only where nothing else could match across its ends.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        self.fast = hasattr(self.backend, "encode_batch_fast")
        self.cuts = _cuts(tokenizer)
        self.cut = ""  # the one that was found last; templates write the same one in every prompt

    def __call__(self, groups: Sequence[Sequence[str]]) -> list[list[Ids]]:
        """Ids of every text, group by group."""
        if self.fast and self._in_pieces(groups[:COMPARED]) != self._whole(groups[:COMPARED]):
            self.fast = False
        return self._in_pieces(groups) if self.fast else self._whole(groups)

    def _whole(self, groups: Sequence[Sequence[str]]) -> list[list[Ids]]:
        texts = list(chain.from_iterable(groups))
        # What apply_chat_template does inside, without its return type, which depends on version and arguments.
        ids = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        found = (tuple(i) for i in ids)
        return [[next(found) for _ in group] for group in groups]

    def _in_pieces(self, groups: Sequence[Sequence[str]]) -> list[list[Ids]]:
        plans = [self._pieces(group) for group in groups]
        pieces = list(dict.fromkeys(piece for plan in plans for pair in plan for piece in pair))
        self.backend.no_truncation()
        self.backend.no_padding()
        encoded = self.backend.encode_batch_fast(pieces, add_special_tokens=False)
        ids = {piece: tuple(e.ids) for piece, e in zip(pieces, encoded, strict=True)}
        return [[ids[head] + ids[rest][1:] for head, rest in plan] for plan in plans]

    def _pieces(self, group: Sequence[str]) -> list[tuple[str, str]]:
        """For each text (all up to a cut in the prompt, the cut with what follows), or (text, "")."""
        prompt = group[0]
        at = prompt.rfind(self.cut) if self.cut else -1
        if at < 0:
            at, self.cut = max(((prompt.rfind(token), token) for token in self.cuts), default=(-1, ""))
        if at < 0:
            return [(text, "") for text in group]
        head = prompt[: at + len(self.cut)]
        return [(head, text[at:]) if text.startswith(head) else (text, "") for text in group]


def _cuts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Control tokens that are found wherever they stand in a text, whatever stands beside them."""
    added = {t.content: t for t in tokenizer.added_tokens_decoder.values() if t.content}
    plain = (t for t in added.values() if t.special and not (t.lstrip or t.rstrip or t.single_word or t.normalized))
    return tuple(t.content for t in plain if not any(_touch(t.content, other) for other in added))


def _touch(text: str, other: str) -> bool:
    """Whether the two, or two of the same, could both match somewhere and overlap."""
    if text != other and (text in other or other in text):
        return True
    ends = range(1, min(len(text), len(other)))
    return any(text[-n:] == other[:n] or other[-n:] == text[:n] for n in ends)
