"""Checksums of everything that is read again. They find bytes that changed by themselves, not a forger.

A sealed file carries the checksum of its own bytes, in a field that counts as zeros: one file, so that nothing can part
it from its checksum. Large files that others write are listed with their checksums instead (`listed`, `faults`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import RawIOBase
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, TypedDict

import xxhash

from dpeer.errors import CheckpointError, DpeerError
from dpeer.files import write_bytes
from dpeer.json_safe import json_safe

HEAD, TAIL = "dpeer.xxh3<", ">3hxx.reepd"
DIGITS = 32
BLANK = HEAD + "0" * DIGITS + TAIL
"""The field of a checksum, before it is known. Two marks, so that no single byte can turn a sealed file into one
without a checksum."""
FORMAT = 1
"""Of state files; what a later dpeer has written is refused."""
BLOCK = 1 << 17  # stays in the cache of a core, between the copy from the system and the hash
WINDOW = 1 << 24
LIST = "checksums.json"
READERS = 4


class Damaged(ValueError):
    """What is wrong with a file, as the end of a sentence that begins with its name."""


class Entry(TypedDict):
    """A listed file."""

    bytes: int
    xxh3: str


def digest(*parts: bytes) -> str:
    """32 hex digits, XXH3 with 128 bits."""
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    return str(state.hexdigest())


# Sealed files


def seal(content: bytes) -> bytes:
    """Fill the last `BLANK` of a file's bytes with their checksum."""
    at = content.rindex(BLANK.encode()) + len(HEAD)
    return b"".join((content[:at], digest(content).encode(), content[at + DIGITS :]))


def verify(content: bytes) -> bool:
    """False for bytes without a checksum, of an earlier version or another program. Damaged: some have changed."""
    head, tail = content.rfind(HEAD.encode()), content.rfind(TAIL.encode())
    if head < 0 and tail < 0:
        return False
    at = head + len(HEAD)
    found = content[at : at + DIGITS]
    if head < 0 or tail != at + DIGITS or digest(content[:at], b"0" * DIGITS, content[tail:]).encode() != found:
        raise Damaged("does not match its checksum: bytes of it have changed since it was written")
    return True


def write_state(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object that is read again, sealed, whole or not at all."""
    fields = json_safe(value) | {"state_format": FORMAT, "checksum": BLANK}
    write_bytes(path, seal(json.dumps(fields, indent=1, allow_nan=False).encode() + b"\n"))


def parse_state(content: bytes) -> dict[str, Any]:
    """What `write_state` wrote, or the JSON object of an earlier version. Damaged: it is neither."""
    verify(content)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        what = "is empty" if not content.strip() else f"is no JSON ({error})"
        raise Damaged(f"{what}; it was cut or overwritten") from error
    if not isinstance(value, dict):
        raise Damaged(f"holds {type(value).__name__} where an object is expected; another program wrote it")
    if (form := value.pop("state_format", FORMAT)) != FORMAT:
        raise Damaged(f"has format {form}, and this dpeer knows {FORMAT}: a later version wrote it")
    value.pop("checksum", None)
    return value


def read_state(path: Path, remedy: str, error: type[DpeerError] = CheckpointError) -> dict[str, Any]:
    """The JSON object of a state file. `error` for one that is missing or damaged: it says `remedy`."""
    try:
        return parse_state(path.read_bytes())
    except FileNotFoundError as fault:
        raise error(f"{path} is missing. {remedy}") from fault
    except OSError as fault:
        raise error(f"{path} cannot be read ({fault.strerror}). {remedy}") from fault
    except Damaged as fault:
        raise error(f"{path} {fault}. {remedy}") from fault


def stamped(path: Path, made: Mapping[str, Any]) -> bool:
    """Whether a state file says that just this was made; a missing or damaged one does not."""
    try:
        return bool(parse_state(path.read_bytes()) == json_safe(made))
    except (OSError, Damaged):
        return False


# Listed files


def entry(path: Path, fresh: bool = False) -> Entry:
    """Size and checksum of a file of any size; reading it takes little memory.

    `fresh`: it was just written, so the system still has it in memory, where it is hashed without being copied. Of
    another file that would be fatal: the system ends a process whose mapped page cannot be read.
    """
    state, size = xxhash.xxh3_128(), 0
    with path.open("rb", buffering=0) as stream:
        for block in (_mapped if fresh else _copied)(stream):
            state.update(block)
            size += len(block)
    return {"bytes": size, "xxh3": str(state.hexdigest())}


def _copied(stream: RawIOBase) -> Iterator[memoryview]:
    buffer = bytearray(BLOCK)
    view = memoryview(buffer)
    while count := stream.readinto(buffer):
        yield view[:count]


def _mapped(stream: RawIOBase) -> Iterator[memoryview]:
    size = os.fstat(stream.fileno()).st_size
    for start in range(0, size, WINDOW):
        with (
            mmap(stream.fileno(), min(WINDOW, size - start), access=ACCESS_READ, offset=start) as pages,
            memoryview(pages) as view,
        ):
            yield view


def listed(folder: Path, paths: Iterable[Path], fresh: bool = False) -> dict[str, Entry]:
    """Checksums of files below `folder`, by their path in it; several are read at once. `fresh`: see `entry`."""
    files = sorted(paths)
    names = (str(path.relative_to(folder)) for path in files)
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(names, pool.map(partial(entry, fresh=fresh), files), strict=True))


def faults(folder: Path, entries: Mapping[str, Entry]) -> dict[str, str]:
    """What is wrong with listed files, by their path in `folder`; empty where all are as they were written."""
    with ThreadPoolExecutor(READERS) as pool:
        said = pool.map(lambda name: _fault(folder / name, entries[name]), entries)
        return {name: fault for name, fault in zip(entries, said, strict=True) if fault}


def _fault(path: Path, expected: Entry) -> str:
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"has {size} bytes where {expected['bytes']} were written"
        if entry(path) != expected:
            return "does not match its checksum: bytes of it have changed since it was written"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({os.strerror(error.errno or 0)})"
    return ""


def write_list(folder: Path, known: Mapping[str, Entry] | None = None) -> None:
    """List all files below `folder` in its `checksums.json`. known: of those that need not be read again."""
    known = known or {}
    others = [p for p in folder.rglob("*") if p.is_file() and str(p.relative_to(folder)) not in {*known, LIST}]
    write_state(folder / LIST, {"files": dict(sorted({**known, **listed(folder, others)}.items()))})


def refuse_damaged_model(path: str | None) -> None:
    """DpeerError for a model folder that dpeer has exported and that has changed since; any other passes."""
    if path and (found := folder_faults(Path(path))):
        name, says = next(iter(found.items()))
        raise DpeerError(
            f"{Path(path, name)} {says}. Whoever loads this model gets another one than was trained. Restore it, or "
            f"remove the folder and make it again: `dpeer export RUN`. If the change is wanted, delete {LIST} there."
        )


def folder_faults(folder: Path) -> dict[str, str] | None:
    """What is wrong in a folder with a `checksums.json`, by path in it; None for a folder without one."""
    if not (folder / LIST).is_file():
        return None
    try:
        return faults(folder, parse_state((folder / LIST).read_bytes())["files"])
    except (Damaged, OSError, KeyError, TypeError) as error:
        return {LIST: str(error) if isinstance(error, Damaged) else f"cannot be used ({error})"}
