"""A chunk of rows to a block of tokens: what one process does of the tokenising of a source."""

from __future__ import annotations

import json
import zlib
from array import array
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from dpeer.data.chat import ChatOptions
from dpeer.data.encode import Ids
from dpeer.data.faults import Fault
from dpeer.data.load import Meaning
from dpeer.data.map import Tally
from dpeer.data.schema import Message, Record
from dpeer.data.split import Keys, Order, hashed, order_array, order_key
from dpeer.data.stream import Chunk, Records, Unreadable
from dpeer.data.tokenize import Auditor, TokenTree, fit, flat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = (
    *("words", "prompt", "responses", "response_tokens", "edges", "golden", "mask"),
    *("longest", "cut", "largest", "unknown", "crc"),
)
"""Of each record: its length in the block (0: it does not fit); counts; the golden response; the number of its mask;
tokens of prompt + longest response; whether the prompt was cut; the largest token id; how many tokens are the unknown
one; CRC-32 of its words. Of one that does not fit: mask and longest only."""
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Options:
    """dimensions: those that are known, in order; None takes the names in the masks, sorted. purposes: what prompts
    are sorted for (`split.order_key`). media: ids that stand for images or sound."""

    max_tokens: int
    overlong: str
    dimensions: tuple[str, ...] | None
    purposes: tuple[str, ...]
    chat: ChatOptions
    media: frozenset[int] = frozenset()


class Said(NamedTuple):
    """How the rows of a chunk were read (`stream.Parsed`)."""

    meaning: Meaning
    columns: tuple[str, ...]
    forms: frozenset[str]
    tally: Tally


class Block(NamedTuple):
    """n sound records, whose `tokens` lie one after the other in the form of `tokenize.flat`."""

    dimensions: tuple[str, ...]
    masks: tuple[tuple[str, ...], ...]
    tokens: Ints
    columns: Ints  # [COLUMNS, n]
    weights: npt.NDArray[np.float64]  # [n]
    keys: Keys  # [n], of the prompts' texts
    asked: Keys  # [n], hashes of the prompts' tokens
    orders: tuple[Order, ...]  # of each purpose
    prompts: tuple[bytes, ...]  # [n], lines that `asking` reads
    ends: frozenset[int]  # last tokens of responses
    thoughts: bool  # whether any response is trained with one
    places: dict[tuple[str, ...], tuple[Record, str]]  # the first record of each mask, and where it stands
    faults: tuple[Fault, ...]
    file: int
    said: Said


class BlockMaker:
    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: Options) -> None:
        self.audit, self.options = Auditor(tokenizer, options.chat, options.media), options
        self.bos, self.unknown = tokenizer.bos_token_id, tokenizer.unk_token_id

    def __call__(self, chunk: Chunk | Records) -> Block:
        """Raises Unreadable, also for a dimension that is not known."""
        parsed = chunk.parsed()
        dimensions = self.options.dimensions or tuple(sorted({d for r in parsed.records for d in r.mask}))
        if any(d not in dimensions for r in parsed.records for d in r.mask):
            raise Unreadable
        records = [replace(r, mask=tuple(d for d in dimensions if d in r.mask)) for r in parsed.records]
        first: dict[tuple[str, ...], tuple[Record, str]] = {}
        for record, place in zip(records, parsed.places, strict=True):
            first.setdefault(record.mask, (record, place))
        found = self.audit(records, dimensions, chunk.first - 1)
        sound = [record for record, tree in zip(records, found, strict=True) if isinstance(tree, TokenTree)]
        trees = [tree for tree in found if isinstance(tree, TokenTree)]
        fitted = [fit(tree, self.options.max_tokens, self.options.overlong, self.bos) for tree in trees]
        masks = {mask: i for i, mask in enumerate(first)}
        tokens, columns = self._packed(trees, fitted, masks)
        return Block(
            dimensions,
            tuple(first),
            tokens,
            columns,
            np.array([r.weight for r in sound], dtype=np.float64),
            np.array([hashed(r) for r in sound], dtype=np.uint64),
            np.array([_hash(tree.prompt) if tree else 0 for tree in fitted], dtype=np.uint64),
            tuple(order_array([order_key(r, purpose) for r in sound]) for purpose in self.options.purposes),
            tuple(map(_line, sound)),
            frozenset(ids[-1] for tree in fitted if tree for ids in tree.responses),
            self.options.chat.reasoning == "train" and any(map(_thinks, sound)),
            first,
            tuple(fault for fault in found if isinstance(fault, Fault)),
            chunk.file,
            Said(chunk.meaning, parsed.columns, parsed.forms, parsed.tally),
        )

    def _packed(
        self, trees: list[TokenTree], fitted: list[TokenTree | None], masks: dict[tuple[str, ...], int]
    ) -> tuple[Ints, Ints]:
        tokens = array("i")
        columns = np.zeros((len(COLUMNS), len(trees)), dtype=np.int32)
        for i, (tree, kept) in enumerate(zip(trees, fitted, strict=True)):
            columns[COLUMNS.index("mask"), i], columns[COLUMNS.index("longest"), i] = masks[tree.mask], tree.longest
            if kept is None:
                continue
            words = array("i", flat(kept))
            tokens += words
            parts = (kept.prompt, *kept.responses)
            columns[:, i] = (
                len(words),
                len(kept.prompt),
                len(kept.responses),
                kept.response_tokens,
                len(kept.edges),
                kept.golden,
                masks[tree.mask],
                kept.longest,
                kept is not tree,
                max(map(max, filter(None, parts))),
                sum(ids.count(self.unknown) for ids in parts) if self.unknown is not None else 0,
                crc(words.tobytes()),
            )
        return np.frombuffer(tokens, dtype=np.int32), columns


def asking(line: bytes) -> Record:
    """The prompt of a record and its source."""
    source, tools, *messages = json.loads(line.decode(errors="surrogatepass"))
    return Record(tuple(Message(*message) for message in messages), (), (), source, tools=tools)


def _line(record: Record) -> bytes:
    content = [record.source, record.tools, *([m.role, m.content, m.extra] for m in record.prompt)]
    return (json.dumps(content, ensure_ascii=False) + "\n").encode(errors="surrogatepass")


def _thinks(record: Record) -> bool:
    return any("reasoning" in r.more or "</think>" in r.text for r in record.responses)


def _hash(ids: Ids) -> int:
    return int(xxhash.xxh3_64_intdigest(array("i", ids).tobytes()))


def crc(words: bytes) -> int:
    """CRC-32 as a signed number of 32 bits."""
    value = zlib.crc32(words)
    return value - (1 << 32) if value >> 31 else value
