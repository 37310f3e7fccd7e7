"""A recipe's records, tokenised once: by whoever comes first, in a folder that all ranks open."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
import transformers

import dpeer
from dpeer.config import Config
from dpeer.config_sources import Map, Source, Sources, listed, own_maps, paths
from dpeer.data import stream
from dpeer.data.blocks import Block, Options, Said
from dpeer.data.facts import shared_prompts, similar_prompts
from dpeer.data.faults import Fault, data_error
from dpeer.data.load import Meaning, load, meaning, splits, told
from dpeer.data.map import Tally
from dpeer.data.names import clashes
from dpeer.data.pool import blocks
from dpeer.data.round_trip import now
from dpeer.data.schema import DataSet, Reading, Record
from dpeer.data.split import Order, carved, share, united
from dpeer.data.stream import Unreadable
from dpeer.data.token_store import FORMAT, Rows, Store, Writer, open_store
from dpeer.data.tokenize import none_fits
from dpeer.disk import disk_fault, remedy
from dpeer.errors import DataError
from dpeer.files import write_json
from dpeer.integrity import Damaged, entry
from dpeer.model.words import options_of
from dpeer.training.token_place import PLACE, alone, clear_left, place_of, remove, temporary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CARVED = "10%"
SHARED = "\nRemove such records from one of the two, or have records carved from the training data: data.heldout=10%."
CLOCK = "strftime_now"
RACY_S = 2.0
"""A file that changed less than this before it was hashed may change again with the same time stamp."""


@dataclass(frozen=True)
class Part:
    """One split: the split of sources that it is, or the share that is carved from the training records. given, map: as
    the recipe says them."""

    name: str
    given: Sources
    split: str
    map: Map | None = None
    share: float | None = None

    @property
    def sources(self) -> tuple[Source, ...]:
        return () if self.share else listed(self.given, self.map)

    @property
    def own(self) -> tuple[bool, ...]:
        """Which sources have a map of their own."""
        return () if self.share else own_maps(self.given)

    def load(self, dimensions: tuple[str, ...] | None) -> DataSet:
        """All of it in memory."""
        return load(self.given, self.split, dimensions, self.map)


def parts(config: Config) -> list[Part]:
    """The training records first."""
    spec = config.data
    tested = all("test" in splits(path) for path in paths(spec.train))
    heldout = spec.heldout or (spec.train if tested else CARVED)
    found = [Part("train", spec.train, "train", spec.map)]
    for name, source, split in (("heldout", heldout, "test"), ("dual", spec.dual, "dual")):
        part = share(source) if isinstance(source, str) else None
        if part or source != "none":
            found.append(Part(name, source, split, spec.map, part))
    return found


def refuse_empty(config: Config, part: Part, carved: int, records: int) -> None:
    """DataError for a share of so few training records that it is none of them."""
    if not carved:
        raise DataError(
            f"{', '.join(paths(config.data.train))}: {part.given} of {records} training records are no record for the "
            f"{part.name} split. Raise data.{part.name}, give a file, or set it to none."
        )


def tokens(
    config: Config, tokenizer: PreTrainedTokenizerBase, media: frozenset[int] = frozenset(), *, whole: bool = False
) -> Store:
    """The store of a recipe's records; it is made where there is none, or a damaged one. `whole`: compare all of it
    with its checksums. Raises DataError as `load` and `tokenize` do."""
    place, wanted = place_of(config.output_dir), parts(config)
    try:
        folder = place / _key(config, wanted, tokenizer, media, place)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror or error}") from error
    with suppress(Damaged):  # told and made good below, by one process
        if store := open_store(folder, whole=whole):
            return store
    try:
        return _made(config, wanted, tokenizer, media, folder, whole)
    except (OSError, Damaged) as error:
        fault = disk_fault(error)
        says = f"{place} {remedy(fault)}" if fault else str(error)
        raise DataError(
            f"{says}; or name a folder on another disk by {PLACE} in the environment. The tokens of the records are "
            "written there."
        ) from error


def _made(
    config: Config,
    wanted: list[Part],
    tokenizer: PreTrainedTokenizerBase,
    media: frozenset[int],
    folder: Path,
    whole: bool,
) -> Store:
    with alone(folder) as held:
        try:
            if store := open_store(folder, whole=whole):
                return store
        except Damaged as damage:
            print(f"{damage}; its folder is made again.", flush=True)
            remove(folder)
        clear_left(folder, held)
        loaded: dict[str, DataSet] = {}
        while not folder.is_dir():
            with temporary(folder) as made, suppress(_Again):
                _write(config, wanted, tokenizer, media, made, loaded)
                try:
                    os.rename(made, folder)
                except OSError:
                    if not folder.is_dir():  # else another process was faster, and its folder holds the same
                        raise
        store = open_store(folder)
        assert store is not None
        return store


class _Again(Exception):
    """A source turned out to be one that cannot be read in chunks, and is loaded now."""


def _write(
    config: Config,
    wanted: list[Part],
    tokenizer: PreTrainedTokenizerBase,
    media: frozenset[int],
    folder: Path,
    loaded: dict[str, DataSet],
) -> None:
    """loaded: parts that are read in memory, by name; it grows. Raises _Again after it has."""
    spec = config.data
    purposes = tuple(p.name for p in wanted if p.share)
    writer = Writer(folder)
    dimensions: tuple[str, ...] | None = None
    rows: dict[str, Rows] = {}
    orders: dict[str, Order] = {}
    reading: dict[str, None] = {}
    for part in wanted:
        if part.share:
            continue
        first = writer.records
        seen = _Seen(part, dimensions, loaded)
        first_part = part.name == "train"
        options = Options(
            spec.max_tokens, spec.overlong, seen.order, purposes if first_part else (), options_of(config), media
        )
        kept: list[tuple[Order, ...]] = []
        with suppress(Unreadable):
            for block in blocks(seen.chunks(), tokenizer, options):
                seen.add(block)
                if not seen.faults:
                    writer.add(block)
                    kept.append(block.orders)
            seen.whole = True
        dimensions = seen.checked(tokenizer)
        reading |= dict.fromkeys(line for read in seen.reading() for line in read.lines())
        rows[part.name] = np.arange(first, writer.records)
        if first_part:
            orders = {p: np.concatenate([o[i] for o in kept]) for i, p in enumerate(purposes)}
    assert dimensions is not None
    rows = _split(config, writer, wanted, rows, orders)
    words, longest = (writer.column(name) for name in ("words", "longest"))
    for mine in rows.values():
        if not words[mine].any():
            raise none_fits(longest[mine].tolist(), spec.max_tokens, spec.overlong)
    about: dict[str, Any] = {"reading": list(reading), "ends": sorted(writer.ends), "thoughts": writer.thoughts}
    about["alike"] = _compared(writer, rows, config)
    writer.finish(dimensions, rows, about)


def _split(
    config: Config, writer: Writer, wanted: list[Part], rows: dict[str, Rows], orders: dict[str, Order]
) -> dict[str, Rows]:
    """Records of all parts, by name, those that are carved included. DataError: a share is none of them.

    Prompts of other texts but the same tokens, such as those of which the same end is left, go together where they
    would be torn apart; elsewhere the split is that of the texts."""
    masks = _mask_ranks(writer)[writer.column("mask")]
    keys, asked = writer.prompt_keys(), writer.asked_tokens()
    for part in wanted:
        if part.share:
            left = rows["train"]
            order = orders[part.name][left]
            chosen = carved(order, keys[left], masks[left], part.share)
            if np.intersect1d(
                asked[left[chosen]], asked[left[~chosen]]
            ).any():  # 0, of records that do not fit, is none
                chosen = carved(order, united(keys[left], asked[left]), masks[left], part.share)
            refuse_empty(config, part, int(chosen.sum()), len(left))
            rows["train"], rows[part.name] = left[~chosen], left[chosen]
    return {part.name: rows[part.name] for part in wanted}


def _mask_ranks(writer: Writer) -> Rows:
    ranks = {mask: i for i, mask in enumerate(sorted(writer.masks))}
    return np.array([ranks[mask] for mask in writer.masks], dtype=np.int64)


def _compared(writer: Writer, rows: dict[str, Rows], config: Config) -> list[tuple[str, str, str]]:
    """What is to be told of prompts that nearly repeat those of another split. DataError: some are in both."""
    prompts = {name: writer.prompts_of(mine) for name, mine in rows.items()}
    if faults := list(shared_prompts(prompts)):
        raise DataError(f"{data_error(', '.join(paths(config.data.train)), faults)}{SHARED}")
    return [(f.where, f.column, f.message) for f in similar_prompts(prompts)]


class _Seen:
    """What a part's blocks say beside their tokens."""

    def __init__(self, part: Part, dimensions: tuple[str, ...] | None, loaded: dict[str, DataSet]) -> None:
        self.part, self.dimensions, self.loaded = part, dimensions, loaded
        self.files = stream.files(part.sources, part.split)
        if self.files is None and part.name not in loaded:
            loaded[part.name] = part.load(dimensions)
        self.data = loaded.get(part.name)
        self.whole = False
        self.faults: list[Fault] = []
        self.places: dict[tuple[str, ...], tuple[Record, str]] = {}
        self.said: dict[int, list[Said]] = defaultdict(list)

    @property
    def order(self) -> tuple[str, ...] | None:
        """The dimensions as far as they are known."""
        return self.data.dimensions if self.data else self.dimensions

    def chunks(self) -> Iterable[stream.Chunk | stream.Records]:
        if self.data or self.files is None:
            return stream.in_memory(self.loaded[self.part.name])
        return stream.chunks(self.part.sources, self.part.own, self.files)

    def add(self, block: Block) -> None:
        for mask, place in block.places.items():
            self.places.setdefault(mask, place)
        self.faults += block.faults
        self.said[block.file].append(block.said)

    def checked(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """The dimensions, in order, of a part without fault. DataError: one with faults, as `load` and `tokenize` say
        them. _Again: there is none, but it cannot be read in chunks."""
        if self.data is None and not self._sound():
            self.loaded[self.part.name] = self.part.load(self.dimensions)
            raise _Again
        if self.faults:
            raise data_error(f"chat template of {tokenizer.name_or_path or 'the tokenizer'}", self.faults)
        return self._order()

    def reading(self) -> tuple[Reading, ...]:
        return self.data.reading if self.data else tuple(read for read, _ in self._read() if read)

    def _order(self) -> tuple[str, ...]:
        return self.order or tuple(sorted({d for mask in self.places for d in mask}))

    def _sound(self) -> bool:
        """Whether the chunks are all that `load` would find, in the form that it would find."""
        if not self.whole or len(self.said) < len(self.files or ()) or not self.places:
            return False
        records, places = zip(*self.places.values(), strict=True)
        if any(clashes(records, places, self._order())):
            return False
        try:
            return all(fine for _, fine in self._read())
        except DataError:
            return False

    def _read(self) -> Iterator[tuple[Reading | None, bool]]:
        """Of each source: how it was read, if it is in no form of dpeer's own; whether all of it is in one form, that
        was told from its beginning."""
        for number, (source, own) in enumerate(zip(self.part.sources, self.part.own, strict=True)):
            files = [i for i, file in enumerate(self.files or ()) if file.source == number]
            said = [one for i in files for one in self.said[i]]
            found = _meaning(source, own, said)
            fine = len({form for one in said for form in one.forms}) == 1
            fine = fine and all(one.meaning == found for one in said)
            yield told(source, found, Tally.of(one.tally for one in said)), fine


def _meaning(source: Source, own: bool, said: list[Said]) -> Meaning:
    """What all columns of a source mean. said: of its chunks."""
    columns = tuple(dict.fromkeys(column for one in said for column in one.columns))
    return meaning(source, columns, "", own, lambda _: said[0].meaning.talks)


def _key(
    config: Config, wanted: list[Part], tokenizer: PreTrainedTokenizerBase, media: frozenset[int], place: Path
) -> str:
    """Everything on which the tokens, and what is told of them, depend."""
    spec = config.data
    content = [[p.name, p.share, p.split, p.own, [_source(s, p.split, place) for s in p.sources]] for p in wanted]
    chat = options_of(config)
    asked = [dict(chat.kwargs), chat.end_of_turn, chat.reasoning, sorted(media)]
    key = [FORMAT, dpeer.__version__, _tokenizer_hash(tokenizer), asked, content, spec.max_tokens, spec.overlong]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _source(source: Source, split: str, place: Path) -> list[Any]:
    given = None if source.map is None else source.map.model_dump(mode="json")
    return [source.path, source.weight, given, _content(source.path, split, place)]


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of what it computes, wherever its files lie."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    template = str(tokenizer.chat_template)
    about = [type(tokenizer).__name__, template, str(tokenizer.special_tokens_map)]
    if CLOCK in template:
        about.append(now(tokenizer).isoformat())
    versions = [transformers.__version__, tokenizers.__version__]
    return hashlib.sha256(json.dumps([model, about, versions]).encode()).hexdigest()


def _content(source: str, split: str, place: Path) -> list[str]:
    """Names and hashes of a source's files."""
    found = stream.content(source, split)
    return [found] if isinstance(found, str) else [f"{path.name} {_file_hash(path, place)}" for path in found]


def _file_hash(path: Path, place: Path) -> str:
    """Of a file's bytes, remembered with its size and time, so that a run's ranks need not read them all."""
    status = path.stat()
    about: dict[str, Any] = {"path": str(path.absolute()), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    memo = place / f"source-{hashlib.sha256(about['path'].encode()).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError):
        known: dict[str, Any] = json.loads(memo.read_text())
        if about == {name: known.get(name) for name in about}:
            return str(known["xxh3"])
    found = entry(path)["xxh3"]
    if time.time() - status.st_mtime > RACY_S and path.stat().st_mtime_ns == status.st_mtime_ns:
        with suppress(OSError):
            write_json(memo, about | {"xxh3": found})
    return found
