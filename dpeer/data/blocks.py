"""A chunk of rows to a block of tokens: what one process does of the tokenising of a source."""

from __future__ import annotations

import zlib
from array import array
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from dpeer.data import parse
from dpeer.data.faults import Fault
from dpeer.data.schema import Record
from dpeer.data.split import Order, order_array, order_key
from dpeer.data.stream import Chunk, Unreadable
from dpeer.data.tokenize import Auditor, TokenTree, fit, flat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = ("words", "prompt", "responses", "response_tokens", "edges", "golden", "mask", "longest", "cut", "crc")
"""Of each record: its length in the block (0: it does not fit); counts; the golden response; the number of its mask;
tokens of prompt + longest response before any cut; whether the prompt was cut; CRC-32 of its words."""
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Options:
    """dimensions: those that are known, in order; None takes the names in the masks, sorted. purposes: what prompts
    are sorted for (`split.order_key`)."""

    max_tokens: int
    overlong: str
    dimensions: tuple[str, ...] | None
    purposes: tuple[str, ...]


class Block(NamedTuple):
    """n sound records, whose `tokens` lie one after the other in the form of `tokenize.flat`."""

    dimensions: tuple[str, ...]
    masks: tuple[tuple[str, ...], ...]
    tokens: Ints
    columns: Ints  # [COLUMNS, n]
    orders: tuple[Order, ...]  # of each purpose
    questions: bytes  # the last messages of the prompts
    question_ends: npt.NDArray[np.int64]  # [n]
    forms: frozenset[str]
    places: dict[tuple[str, ...], tuple[Record, str]]  # the first record of each mask, and where it stands
    parse_faults: tuple[Fault, ...]
    template_faults: tuple[Fault, ...]


class BlockMaker:
    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: Options) -> None:
        self.audit, self.options, self.bos = Auditor(tokenizer), options, tokenizer.bos_token_id

    def __call__(self, chunk: Chunk) -> Block:
        """Raises Unreadable, also for a dimension that is not known."""
        records, places, forms, faults = _parsed(chunk)
        dimensions = self.options.dimensions or tuple(sorted({d for r in records for d in r.mask}))
        if any(d not in dimensions for r in records for d in r.mask):
            raise Unreadable
        records = [replace(r, mask=tuple(d for d in dimensions if d in r.mask)) for r in records]
        first: dict[tuple[str, ...], tuple[Record, str]] = {}
        for record, place in zip(records, places, strict=True):
            first.setdefault(record.mask, (record, place))
        found = self.audit(records, dimensions)
        sound = [record for record, tree in zip(records, found, strict=True) if isinstance(tree, TokenTree)]
        trees = [tree for tree in found if isinstance(tree, TokenTree)]
        masks = tuple(first)
        tokens, columns = self._packed(trees, {mask: i for i, mask in enumerate(masks)})
        questions = [record.prompt[-1].content.encode() for record in sound]
        return Block(
            dimensions,
            masks,
            tokens,
            columns,
            tuple(order_array([order_key(r, purpose) for r in sound]) for purpose in self.options.purposes),
            b"".join(questions),
            np.cumsum([len(q) for q in questions], dtype=np.int64),
            forms,
            first,
            tuple(faults),
            tuple(fault for fault in found if isinstance(fault, Fault)),
        )

    def _packed(self, trees: list[TokenTree], masks: dict[tuple[str, ...], int]) -> tuple[Ints, Ints]:
        tokens = array("i")
        columns = np.zeros((len(COLUMNS), len(trees)), dtype=np.int32)
        for i, tree in enumerate(trees):
            columns[COLUMNS.index("mask"), i], columns[COLUMNS.index("longest"), i] = masks[tree.mask], tree.longest
            kept = fit(tree, self.options.max_tokens, self.options.overlong, self.bos)
            if kept is None:
                continue
            words = array("i", flat(kept))
            tokens += words
            columns[:, i] = (
                len(words),
                len(kept.prompt),
                len(kept.responses),
                kept.response_tokens,
                len(kept.edges),
                kept.golden,
                masks[tree.mask],
                tree.longest,
                kept is not tree,
                crc(words.tobytes()),
            )
        return np.frombuffer(tokens, dtype=np.int32), columns


def crc(words: bytes) -> int:
    """CRC-32 as a signed number of 32 bits."""
    value = zlib.crc32(words)
    return value - (1 << 32) if value >> 31 else value


def _parsed(chunk: Chunk) -> tuple[list[Record], list[str], frozenset[str], list[Fault]]:
    records, places, forms, faults = [], [], set(), []
    for row in chunk.rows():
        record = parse.record(row)
        if isinstance(record, Fault):
            faults.append(record)
        else:
            records.append(record)
            places.append(row.where)
            forms.add(parse.form(row.fields))
    return records, places, frozenset(forms), faults
