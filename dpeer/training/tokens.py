"""A recipe's records, tokenised once: by whoever comes first, in a folder that all ranks open."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
import transformers

import dpeer
from dpeer.config import Config
from dpeer.data import load, stream
from dpeer.data.blocks import COLUMNS, Block, Options
from dpeer.data.faults import Fault, data_error
from dpeer.data.names import clashes
from dpeer.data.pool import blocks
from dpeer.data.schema import Record
from dpeer.data.split import Order, carved, share
from dpeer.data.stream import Unreadable
from dpeer.data.token_store import FORMAT, Rows, Store, Writer, open_store
from dpeer.data.tokenize import none_fits
from dpeer.errors import DataError
from dpeer.files import write_json
from dpeer.integrity import Damaged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACE = "DPEER_TOKENS"
CARVED = "10%"
WAIT_S = 3600.0
"""Longest wait for another process that tokenises the same; then it is done here too, which harms nobody."""
POLL_S = 0.5
RACY_S = 2.0
"""A file that changed less than this before it was hashed may change again with the same time stamp."""


@dataclass(frozen=True)
class Part:
    """One split: the split of a source that it is, or the share that is carved from the training records."""

    name: str
    source: str
    split: str
    part: float | None


def parts(config: Config) -> list[Part]:
    """The training records first."""
    spec = config.data
    heldout = spec.heldout or (spec.train if "test" in load.splits(spec.train) else CARVED)
    others = (("heldout", heldout, "test"), ("dual", spec.dual, "dual"))
    return [
        Part("train", spec.train, "train", None),
        *(Part(name, source, split, share(source)) for name, source, split in others if source != "none"),
    ]


def tokens(config: Config, tokenizer: PreTrainedTokenizerBase, *, whole: bool = False) -> Store:
    """The store of a recipe's records; it is made where there is none, or a damaged one. `whole`: compare all of it
    with its checksums. Raises DataError as `load` and `tokenize` do."""
    place = Path(os.environ.get(PLACE) or config.output_dir / "tokens")
    wanted = parts(config)
    folder = place / _key(config, wanted, tokenizer, place)
    with suppress(Damaged):
        if store := open_store(folder, whole=whole):
            return store
    try:
        return _made(config, wanted, tokenizer, folder, whole)
    except OSError as error:
        raise DataError(
            f"{place}: the tokens of the records could not be written there ({error.strerror or error}). Make room, "
            f"or name a folder on another disk by {PLACE} in the environment."
        ) from error


def _made(config: Config, wanted: list[Part], tokenizer: PreTrainedTokenizerBase, folder: Path, whole: bool) -> Store:
    with _alone(folder) as held:
        try:
            if store := open_store(folder, whole=whole):
                return store
        except Damaged as damage:
            print(f"{damage}; its folder is made again.", flush=True)
            _remove(folder)
        if held:
            for left in folder.parent.glob(f".{folder.name}.*.part"):  # by a maker that was killed
                _remove(left)
        with _temporary(folder) as temporary:
            _write(config, wanted, tokenizer, temporary)
            try:
                os.rename(temporary, folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster, and its folder holds the same
                    raise
        store = open_store(folder)
        assert store is not None
        return store


def _write(config: Config, wanted: list[Part], tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    spec = config.data
    purposes = tuple(p.name for p in wanted if p.part is not None)
    writer = Writer(folder)
    dimensions: tuple[str, ...] | None = None
    rows: dict[str, Rows] = {}
    orders: dict[str, Order] = {}
    for part in wanted:
        if part.part is not None:
            continue
        options = Options(spec.max_tokens, spec.overlong, dimensions, purposes if part.name == "train" else ())
        first = writer.records
        found = _Seen(part, tokenizer, dimensions)
        kept: list[tuple[Order, ...]] = []
        try:
            for block in blocks(stream.chunks(part.source, part.split), tokenizer, options):
                found.add(block)
                if found.sound:
                    writer.add(block)
                    kept.append(block.orders)
        except Unreadable:
            found.unreadable = True
        own = found.refuse_faults()
        dimensions = dimensions or own
        rows[part.name] = np.arange(first, writer.records)
        if part.name == "train":
            orders = {p: np.concatenate([o[i] for o in kept]) for i, p in enumerate(purposes)}
    assert dimensions is not None
    columns = np.concatenate(writer.columns, axis=1)
    masks = _mask_ranks(writer)[columns[COLUMNS.index("mask")]]
    for part in wanted:
        if part.part is not None:
            left = rows["train"]
            chosen = carved(orders[part.name][left], masks[left], part.part)
            rows["train"], rows[part.name] = left[~chosen], left[chosen]
    rows = {name: rows[name] for name in ("train", *(p.name for p in wanted[1:]))}
    for mine in rows.values():
        if not columns[COLUMNS.index("words"), mine].any():
            raise none_fits(columns[COLUMNS.index("longest"), mine].tolist(), spec.max_tokens, spec.overlong)
    writer.finish(dimensions, rows)


def _mask_ranks(writer: Writer) -> Rows:
    ranks = {mask: i for i, mask in enumerate(sorted(writer.masks))}
    return np.array([ranks[mask] for mask in writer.masks], dtype=np.int64)


class _Seen:
    """What a source's blocks say beside their tokens."""

    def __init__(self, part: Part, tokenizer: PreTrainedTokenizerBase, dimensions: tuple[str, ...] | None) -> None:
        self.part, self.tokenizer, self.dimensions = part, tokenizer, dimensions
        self.names: set[str] = set()
        self.forms: set[str] = set()
        self.places: dict[tuple[str, ...], tuple[Record, str]] = {}
        self.parsing: list[Fault] = []
        self.template: list[Fault] = []
        self.unreadable = False

    @property
    def sound(self) -> bool:
        return not (self.parsing or self.template)

    def add(self, block: Block) -> None:
        self.names |= {d for mask in block.masks for d in mask}
        self.forms |= block.forms
        for mask, place in block.places.items():
            self.places.setdefault(mask, place)
        self.parsing += block.parse_faults
        self.template += block.template_faults

    def refuse_faults(self) -> tuple[str, ...]:
        """The dimensions, in order, of a source without fault. What concerns more than one row is said by `load`."""
        order = self.dimensions or tuple(sorted(self.names))
        records, places = zip(*self.places.values(), strict=True) if self.places else ((), ())
        odd = self.unreadable or len(self.forms) != 1 or next(clashes(records, places, order), None)
        if odd:
            load.load(self.part.source, self.part.split, self.dimensions)
            raise DataError(f"{self.part.source}: changed while it was read. Start again.")
        if self.parsing:
            raise data_error(self.part.source, self.parsing)
        if self.template:
            raise data_error(f"chat template of {self.tokenizer.name_or_path or 'the tokenizer'}", self.template)
        return order


def _key(config: Config, wanted: list[Part], tokenizer: PreTrainedTokenizerBase, place: Path) -> str:
    """Everything on which the tokens depend."""
    spec = config.data
    content = [[p.name, p.part or _source_hash(p, place)] for p in wanted]
    key = [FORMAT, dpeer.__version__, _tokenizer_hash(tokenizer), content, spec.max_tokens, spec.overlong]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of what it computes, wherever its files lie."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    about = [type(tokenizer).__name__, str(tokenizer.chat_template), str(tokenizer.special_tokens_map)]
    versions = [transformers.__version__, tokenizers.__version__]
    return hashlib.sha256(json.dumps([model, about, versions]).encode()).hexdigest()


def _source_hash(part: Part, place: Path) -> str:
    """Of a file's bytes, remembered with its size and time, so that a run's ranks need not read them all."""
    path = stream.local(part.source, part.split)
    if path is None:
        return stream.hub_fingerprint(part.source, part.split)
    status = path.stat()
    about: dict[str, Any] = {"path": str(path.absolute()), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    memo = place / f"source-{hashlib.sha256(about['path'].encode()).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError):
        known: dict[str, Any] = json.loads(memo.read_text())
        if about == {name: known.get(name) for name in about}:
            return str(known["xxh3"])
    found = f"{path.suffix} {stream.content_hash(path)}"
    if time.time() - status.st_mtime > RACY_S and path.stat().st_mtime_ns == status.st_mtime_ns:
        with suppress(OSError):
            write_json(memo, about | {"xxh3": found})
    return found


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A folder beside it, gone after the block unless it was renamed."""
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.part")
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Wait, within bounds, until no other process makes this folder; yields whether that is certain. On a file system
    without locks nobody waits."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("a") as lock:
        deadline, held = time.monotonic() + WAIT_S, False
        while not held and time.monotonic() < deadline:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                time.sleep(POLL_S)
            except OSError:
                break
        yield held


def _remove(folder: Path) -> None:
    grave = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.damaged")
    with suppress(OSError):
        os.rename(folder, grave)
        shutil.rmtree(grave, ignore_errors=True)
