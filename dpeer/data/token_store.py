"""Tokenised records on disk: written once, opened by every rank, read record by record.

A folder holds the tokens of all records (`tokens.i32`, each record in the form of `tokenize.flat`), arrays about the
records, and for each split which records it has. Arrays are memory-mapped; tokens are read where they lie, so that no
rank's memory grows with the data, and each record is compared with its CRC-32.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
import numpy.typing as npt

from dpeer.data.blocks import COLUMNS, Block, Ints, asking, crc
from dpeer.data.prompts import Prompts
from dpeer.data.schema import Record
from dpeer.data.split import Keys
from dpeer.data.tokenize import TokenizedSet, TokenTree, unflat
from dpeer.errors import DataError
from dpeer.files import sync_folder
from dpeer.integrity import Damaged, faults, listed, parse_state, write_state

FORMAT = 5
WORD = 4  # bytes
SPAN = 1 << 18
"""Records, or words, that are looked at in one go."""
TOKENS, PROMPTS, STORE, WEIGHTS = "tokens.i32", "prompts.jsonl", "store.json", "weights"
Rows = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]


class Writer:
    """Takes the blocks of one source after the other, then the splits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokens: BinaryIO = (folder / TOKENS).open("wb")
        self.prompts: BinaryIO = (folder / PROMPTS).open("wb")
        self.masks: dict[tuple[str, ...], int] = {}
        self.columns: list[Ints] = []
        self.weights: list[Weights] = []
        self.keys: list[Keys] = []
        self.asked: list[Keys] = []
        self.ends: set[int] = set()
        self.thoughts = False
        self.prompt_ends: list[Rows] = [np.zeros(1, dtype=np.int64)]
        self.prompt_bytes = 0
        self.named: list[tuple[int, int, tuple[str, ...]]] = []  # records [from, to) that count these dimensions

    @property
    def records(self) -> int:
        return self.named[-1][1] if self.named else 0

    def column(self, name: str) -> Ints:
        """[N]: one of `COLUMNS`."""
        at = COLUMNS.index(name)
        return _joined([columns[at] for columns in self.columns], np.int32)

    def prompt_keys(self) -> Keys:
        """[N], equal for records with the same prompt."""
        return _joined(self.keys, np.uint64)

    def asked_tokens(self) -> Keys:
        """[N]: hashes of the prompts' tokens; 0 for a record that does not fit."""
        return _joined(self.asked, np.uint64)

    def add(self, block: Block) -> None:
        columns = block.columns.copy()
        numbers = np.array([self.masks.setdefault(m, len(self.masks)) for m in block.masks], dtype=np.int32)
        columns[COLUMNS.index("mask")] = numbers[columns[COLUMNS.index("mask")]] if numbers.size else 0
        self.tokens.write(block.tokens.tobytes())
        self.prompts.write(b"".join(block.prompts))
        lengths = np.array([len(line) for line in block.prompts], dtype=np.int64)
        self.prompt_ends.append(self.prompt_bytes + np.cumsum(lengths))
        self.prompt_bytes += int(lengths.sum())
        self.weights.append(block.weights)
        self.keys.append(block.keys)
        self.asked.append(block.asked)
        self.ends |= block.ends
        self.thoughts |= block.thoughts
        self.named.append((self.records, self.records + columns.shape[1], block.dimensions))
        self.columns.append(columns)

    def prompts_of(self, rows: Rows) -> Prompts:
        """The prompts of these records."""
        self.prompts.flush()
        ends = np.concatenate(self.prompt_ends)
        return Prompts(
            StoredPrompts(self.folder / PROMPTS, ends, rows), self.prompt_keys()[rows], self.asked_tokens()[rows]
        )

    def finish(self, dimensions: tuple[str, ...], splits: Mapping[str, Rows], about: Mapping[str, Any]) -> None:
        """splits: records of each, those that do not fit among them; the first are drawn by weight. about: what else
        is to be kept."""
        columns = np.concatenate([np.zeros((len(COLUMNS), 0), dtype=np.int32), *self.columns], axis=1)
        words = columns[COLUMNS.index("words")]
        starts = np.concatenate([[0], np.cumsum(words, dtype=np.int64)])
        for stream in (self.tokens, self.prompts):
            _close(stream)
        self._rename(dimensions, columns, starts)
        self._save("columns", columns)
        self._save("starts", starts)
        self._save("prompt_ends", np.concatenate(self.prompt_ends))
        facts = {}
        for name, rows in splits.items():
            kept = np.flatnonzero(words[rows])
            self._save(name, np.stack([rows[kept], kept]))
            facts[name] = self._facts(dimensions, rows, columns, starts)
        name, rows = next(iter(splits.items()))
        facts[name]["weights"] = self._weigh(rows[words[rows] > 0])
        write_state(
            self.folder / STORE,
            {
                "format": FORMAT,
                "dimensions": dimensions,
                "masks": list(self.masks),
                "splits": facts,
                "files": listed(self.folder, self.folder.iterdir()),
                **about,
            },
        )
        sync_folder(self.folder)

    def _weigh(self, rows: Rows) -> str | None:
        """Keeps the weights of these records; their SHA-256, or None where all are equal."""
        weights = _joined(self.weights, np.float64)[rows]
        if (weights == weights[:1]).all():
            return None
        self._save(WEIGHTS, weights)
        return hashlib.sha256(repr(tuple(weights.tolist())).encode()).hexdigest()

    def _save(self, name: str, values: npt.NDArray[Any]) -> None:
        with (self.folder / f"{name}.npy").open("wb") as stream:
            np.save(stream, np.ascontiguousarray(values))
            stream.flush()
            os.fsync(stream.fileno())

    def _rename(self, dimensions: tuple[str, ...], columns: Ints, starts: Rows) -> None:
        """Number the dimensions of edges as all records do; a block that lacked some has counted its own only."""
        if all(own == dimensions for *_, own in self.named):
            return
        words = np.memmap(self.folder / TOKENS, dtype=np.int32, mode="r+")
        for first, last, own in self.named:
            if own == dimensions or first == last:
                continue
            at, _ = _edge_words(np.arange(first, last), columns, starts)
            words[at] = np.array([dimensions.index(d) for d in own], dtype=np.int32)[words[at]]
            for row in range(first, last):
                columns[COLUMNS.index("crc"), row] = crc(words[starts[row] : starts[row + 1]].tobytes())
        words.flush()

    def _facts(self, dimensions: tuple[str, ...], rows: Rows, columns: Ints, starts: Rows) -> dict[str, Any]:
        kept = rows[columns[COLUMNS.index("words"), rows] > 0]
        empty = not starts[-1]
        words = np.zeros(0, np.int32) if empty else np.memmap(self.folder / TOKENS, dtype=np.int32, mode="r")
        edges = np.zeros(len(dimensions), dtype=np.int64)
        asked: list[Keys] = []  # [pairs, 2]: a prompt, and a dimension of its edges
        tokens_of = self.asked_tokens()
        for some in (kept[i : i + SPAN] for i in range(0, len(kept), SPAN)):
            at, record = _edge_words(some, columns, starts)
            edges += np.bincount(words[at], minlength=len(dimensions))
            pairs = np.stack([tokens_of[some][record], words[at].astype(np.uint64)], axis=1)
            asked.append(np.unique(pairs, axis=0))
        distinct = np.unique(np.concatenate(asked), axis=0)[:, 1].astype(np.int64)
        counts = dict(zip(COLUMNS, columns[:, kept].astype(np.int64), strict=True))
        return {
            "sha256": _sha256(dimensions, words, kept, starts),
            "edges": dict(zip(dimensions, edges.tolist(), strict=True)),
            "having": np.bincount(distinct, minlength=len(dimensions)).tolist(),
            "dropped": len(rows) - len(kept),
            "cut": int(counts["cut"].sum()),
            "largest": int(counts["largest"].max()),
            "longest": int(counts["longest"].max()),
            "total": int(counts["prompt"].sum() + counts["response_tokens"].sum()),
            "unknown": int(counts["unknown"].sum()),
        }


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=dtype), *parts])


def _close(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())
    stream.close()


def _edge_words(rows: Rows, columns: Ints, starts: Rows) -> tuple[Rows, Rows]:
    """Where the dimensions of these records' edges stand among all words, and the number (in `rows`) of each one's."""
    counts = columns[COLUMNS.index("edges"), rows].astype(np.int64)
    record = np.repeat(np.arange(len(rows)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts[rows + 1] - 3 * counts, counts) + 3 * within, record


def _sha256(dimensions: tuple[str, ...], words: Ints, kept: Rows, starts: Rows) -> str:
    """That of `TokenizedSet`, of records that may lie anywhere."""
    digest = hashlib.sha256("\0".join(dimensions).encode())
    ends = np.flatnonzero(starts[kept[1:]] != starts[kept[:-1] + 1])
    for first, last in zip([0, *(ends + 1)], [*ends, len(kept) - 1], strict=True):
        if last < first:
            continue
        begin, end = int(starts[kept[first]]), int(starts[kept[last] + 1])
        for at in range(begin, end, SPAN):
            digest.update(words[at : min(end, at + SPAN)].astype(np.int64).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Store:
    """An open folder. `columns` [COLUMNS, N], `starts` [N + 1] (words): mapped. Who removes the folder does not harm
    a run: tokens and prompts are open as long as the process."""

    folder: Path
    state: Mapping[str, Any]
    columns: Ints
    starts: Rows
    prompts: StoredPrompts
    descriptor: int  # of the tokens

    @cached_property
    def masks(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(mask) for mask in self.state["masks"])

    def tree(self, row: int, index: int) -> TokenTree:
        """Raises DataError for a record that is not as it was written."""
        start, end = int(self.starts[row]), int(self.starts[row + 1])
        content = os.pread(self.descriptor, (end - start) * WORD, start * WORD)
        if crc(content) != self.columns[COLUMNS.index("crc"), row]:
            raise DataError(
                f"{self.folder / TOKENS}: record {row} does not match its checksum: bytes of it have changed since it "
                f"was written. Start again: it is made anew, or delete {self.folder}."
            )
        golden, mask = (int(self.columns[COLUMNS.index(name), row]) for name in ("golden", "mask"))
        return unflat(np.frombuffer(content, dtype=np.int32).tolist(), index, golden, self.masks[mask])

    @cached_property
    def weights(self) -> Weights | None:
        """Of the training records, [n], mapped; None where all are equal."""
        path = self.folder / f"{WEIGHTS}.npy"
        return np.load(path, mmap_mode="r") if path.name in self.state["files"] else None

    def split(self, name: str) -> StoredSet:
        rows, indices = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        about = self.state["splits"][name]
        trees = StoredTrees(self, rows, indices)
        return StoredSet(tuple(self.state["dimensions"]), trees, about["dropped"], about["cut"], about)


class StoredPrompts(Sequence[Record]):
    """Prompts and sources of records, made when they are asked for. ends: [N + 1] (bytes), of all; rows: which."""

    def __init__(self, path: Path, ends: Rows, rows: Rows | range) -> None:
        self.ends, self.rows, self.descriptor = ends, rows, os.open(path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> list[Record]: ...
    def __getitem__(self, at: int | slice) -> Record | list[Record]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        start, end = (int(self.ends[self.rows[at] + i]) for i in (0, 1))
        return asking(os.pread(self.descriptor, end - start, start))

    def __del__(self) -> None:
        os.close(self.descriptor)


class StoredTrees(Sequence[TokenTree]):
    """Trees of a store, made when they are asked for. rows, indices: [n], of each in the store and in its split."""

    def __init__(self, store: Store, rows: Rows, indices: Rows) -> None:
        self.store, self.rows, self.indices = store, rows, indices

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> TokenTree: ...
    @overload
    def __getitem__(self, at: slice) -> StoredTrees: ...
    def __getitem__(self, at: int | slice) -> TokenTree | StoredTrees:
        if isinstance(at, slice):
            return StoredTrees(self.store, self.rows[at], self.indices[at])
        return self.store.tree(int(self.rows[at]), int(self.indices[at]))

    def column(self, name: str) -> Rows:
        """[n]: one of `COLUMNS`."""
        values: Rows = self.store.columns[COLUMNS.index(name)][self.rows].astype(np.int64)
        return values

    def question(self, at: int) -> str:
        """The last message of a record's prompt, as it stands in the source."""
        return self.store.prompts[int(self.rows[at])].prompt[-1].content


@dataclass(frozen=True)
class StoredSet(TokenizedSet):
    """A split of a store: what is known of all its records was counted when it was written."""

    about: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        return str(self.about["sha256"])

    @property
    def edges(self) -> dict[str, int]:
        return dict(self.about["edges"])

    @property
    def prompts_with_edges(self) -> tuple[int, ...]:
        return tuple(self.about["having"])


def open_store(folder: Path, *, whole: bool = False) -> Store | None:
    """None where there is no such folder. `whole`: compare tokens too, not only the arrays, with their checksums; a
    record's are compared when it is read. Raises Damaged, which names the file."""
    if not folder.is_dir():
        return None
    try:
        state = parse_state((folder / STORE).read_bytes())
        entries = dict(state["files"])
    except (Damaged, OSError, KeyError, TypeError) as error:
        raise Damaged(f"{folder / STORE} {error if isinstance(error, Damaged) else 'cannot be read'}") from error
    hashed = {name: e for name, e in entries.items() if whole or name not in (TOKENS, PROMPTS)}
    wrong = faults(folder, hashed) | {
        name: "has another size than was written"
        for name, e in entries.items()
        if (folder / name).is_file() and (folder / name).stat().st_size != e["bytes"]
    }
    wrong |= {name: "is missing" for name in entries if not (folder / name).is_file()}
    if wrong:
        name, says = next(iter(wrong.items()))
        raise Damaged(f"{folder / name} {says}")
    paths = (folder / f"{name}.npy" for name in ("columns", "starts", "prompt_ends"))
    columns, starts, ends = (np.load(path, mmap_mode="r") for path in paths)
    prompts = StoredPrompts(folder / PROMPTS, ends, range(len(ends) - 1))
    return Store(folder, state, columns, starts, prompts, os.open(folder / TOKENS, os.O_RDONLY))
