"""What a data set holds, and everything that would hurt a training run on it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING

from dpeer.config_sources import Map
from dpeer.data.chat import ChatOptions
from dpeer.data.facts import ModelFacts, Tokens, facts
from dpeer.data.facts import tokens as counted_tokens
from dpeer.data.faults import Fault, excerpt
from dpeer.data.load import load_with_faults, splits
from dpeer.data.order import edge_counts, edges
from dpeer.data.schema import DataSet, Reading, Record
from dpeer.data.split import prompt_key
from dpeer.data.tokenize import PLAIN, audit, response_name
from dpeer.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


REPEATED = 20
"""Characters of a prompt from which on responses that begin with it are told."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Smallest, median and largest of some lengths."""

    least: int
    median: float
    most: int


@dataclass(frozen=True, slots=True)
class Split:
    """Counts of the sound records of one split.

    masks: records per mask, written "A+T". edges: preference edges per dimension. prompts: distinct
    ones with an edge of a dimension. lengths: of prompts and responses, in characters and, with a tokenizer, in tokens
    ("prompt tokens" ... "prompt + longest response tokens").
    """

    name: str
    records: int
    masks: dict[str, int]
    edges: dict[str, int]
    prompts: dict[str, int]
    lengths: dict[str, Spread]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """errors: what training would refuse or be misled by. warnings: what is allowed but rarely meant."""

    source: str
    dimensions: tuple[str, ...]
    splits: tuple[Split, ...]
    errors: tuple[Fault, ...]
    warnings: tuple[Fault, ...]
    reading: tuple[Reading, ...] = ()

    def to_json(self) -> str:
        """The whole report, every fault included, as indented JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)


def check(
    source: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    heldout: str | None = None,
    map: Map | None = None,
    model: ModelFacts | None = None,
    options: ChatOptions = PLAIN,
) -> CheckReport:
    """Check the training split of `source`, and `heldout` or, without it, the source's own test split if there is one.

    Errors: faults of the rows; responses of a record with the same text; with a tokenizer, the audit of its chat
    template, asked by `options`; what `facts` refuses of the splits, their tokens and the model. Warnings: active
    dimensions without a reject of their own; repeated records; records with the same prompt and mask, unless ratings
    rank many responses; pairs in both orders; responses that repeat their prompt; what `facts` tells. Never raises for
    a fault of the data.
    """
    errors: list[Fault] = []
    warnings: list[Fault] = []
    splits: list[Split] = []
    data: list[DataSet] = []
    counted: dict[str, Tokens] = {}
    try:
        for name, place, split in _places(source, heldout):
            part, faults = load_with_faults(place, split, data[0].dimensions if data else None, map)
            errors += faults
            tokens: dict[str, Spread] = {}
            if tokenizer is not None:
                media = model.media if model else frozenset[int]()
                tokens, faults, counted[name] = _tokens(part, tokenizer, options, media)
                errors += faults
            errors += _equal_responses(part)
            warnings += [*_missing_rejects(part), *_repeats(part), *_reversed(part), *_with_prompts(part)]
            splits.append(_count(name, part, tokens))
            data.append(part)
    except DataError as error:
        where = heldout if data and heldout else source
        errors.append(Fault(where, "", str(error).removeprefix(f"{where}: ")))
    parts = {split.name: part for split, part in zip(splits, data, strict=True)}
    found = facts(parts, counted, tokenizer, [model] if model else [])
    errors += found.errors
    warnings += found.warnings
    dimensions = data[0].dimensions if data else ()
    reading = tuple(r for part in data for r in part.reading)
    return CheckReport(source, dimensions, tuple(splits), tuple(errors), tuple(warnings), reading)


def _places(source: str, heldout: str | None) -> Iterator[tuple[str, str, str]]:
    yield "train", source, "train"
    if heldout is not None:
        yield "heldout", heldout, "test"
    elif "test" in splits(source):
        yield "heldout", source, "test"


def _count(name: str, data: DataSet, tokens: dict[str, Spread]) -> Split:
    masks = Counter("+".join(r.mask) for r in data.records)
    prompts = [sum(len(m.content) for m in r.prompt) for r in data.records]
    responses = [len(answer.text) for r in data.records for answer in r.responses]
    characters = _spreads({"prompt characters": prompts, "response characters": responses})
    return Split(
        name,
        len(data.records),
        dict(sorted(masks.items(), key=lambda item: (item[0].count("+"), item[0]))),
        edge_counts(data),
        _prompts(data),
        characters | tokens,
    )


def _prompts(data: DataSet) -> dict[str, int]:
    asked: dict[str, set[object]] = {d: set() for d in data.dimensions}
    for record in data.records:
        for edge in edges(record):
            asked[edge.dimension].add(prompt_key(record))
    return {d: len(prompts) for d, prompts in asked.items()}


def _tokens(
    data: DataSet, tokenizer: PreTrainedTokenizerBase, options: ChatOptions, media: frozenset[int]
) -> tuple[dict[str, Spread], tuple[Fault, ...], Tokens]:
    trees, faults = audit(data, tokenizer, options, media)
    lengths = {
        "prompt tokens": [len(t.prompt) for t in trees],
        "response tokens": [len(r) for t in trees for r in t.responses],
        "prompt + longest response tokens": [t.longest for t in trees],
    }
    return _spreads(lengths), faults, counted_tokens(data.dimensions, trees, tokenizer.unk_token_id)


def _spreads(lengths: dict[str, list[int]]) -> dict[str, Spread]:
    return {name: Spread(min(n), median(n), max(n)) for name, n in lengths.items() if n}


def _equal_responses(data: DataSet) -> Iterator[Fault]:
    for record in data.records:
        first: dict[str, int] = {}
        for k, response in enumerate(record.responses):
            j = first.setdefault(response.whole, k)
            if j < k:
                message = f"same text as {response_name(record, j)}: {excerpt(response.text)}"
                yield Fault(record.source, response_name(record, k), message)


def _missing_rejects(data: DataSet) -> Iterator[Fault]:
    for record in data.records:
        failed = {r.fails for r in record.responses}
        for dimension in record.mask:
            if frozenset({dimension}) not in failed:
                yield Fault(
                    record.source, "", f"{dimension!r} is active, but no response fails it alone: empty reject?"
                )


def _repeats(data: DataSet) -> Iterator[Fault]:
    first: dict[tuple[object, ...], Record] = {}
    ranked = any(reading.ranked for reading in data.reading)
    for record in data.records:
        earlier = first.setdefault((prompt_key(record), record.mask), record)
        if earlier is not record and not (ranked and earlier.key != record.key):
            what = "repeats" if earlier.key == record.key else "has the prompt and mask of"
            yield Fault(record.source, "prompt", f"{what} {earlier.source}: {excerpt(record.prompt[-1].content)}")


def _reversed(data: DataSet) -> Iterator[Fault]:
    """Records that order two responses as another one does not: together they teach nothing."""
    first: dict[tuple[str, ...], Record] = {}
    for record in data.records:
        prompt = prompt_key(record)
        for edge in edges(record):
            better, worse = (record.responses[k].whole for k in (edge.better, edge.worse))
            first.setdefault((prompt, edge.dimension, better, worse), record)
            if (other := first.get((prompt, edge.dimension, worse, better))) and better != worse:
                message = f"{excerpt(better, 30)} over {excerpt(worse, 30)} in {edge.dimension!r}, and {other.source} "
                yield Fault(record.source, "", f"has {message}has the reverse")


def _with_prompts(data: DataSet) -> Iterator[Fault]:
    """Responses that were written with their prompt, as some tools do: it would be trained as part of the response."""
    for record in data.records:
        asked = record.prompt[-1].content.strip()
        if len(asked) >= REPEATED and all(r.text.strip().startswith(asked) for r in record.responses):
            yield Fault(record.source, "", f"every response begins with the prompt: {excerpt(asked)}")
