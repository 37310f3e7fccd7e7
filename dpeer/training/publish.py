"""The last of an export, without tensors: its files are read back, listed and given their folder's name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import xxhash

from dpeer.errors import CheckpointError
from dpeer.files import ROOM
from dpeer.integrity import Entry, write_list
from dpeer.training.calls import Exported

BLOCK = 1 << 24
FORWARD, BYTES = "reloaded, and compared by its log-probabilities", "read back, and compared with what was gathered"


def unfinished(folder: Path) -> Path:
    """Where an export stands until it is whole and compared."""
    return folder.with_name(f".{folder.name}.tmp")


def publish(folder: Path, made: Exported) -> str:
    """Not collective. Read back what `export` has left unread, and rename it; how the export was checked, in words."""
    if made["files"] is None:
        return FORWARD
    temporary = unfinished(folder)
    if made["files"]:
        refuse_unfit(temporary)
    write_list(temporary, read_back(temporary, made["files"]))
    rename(temporary, folder)
    return BYTES


def refuse_unfit(folder: Path) -> None:
    """CheckpointError unless the files have just the tensors, in their sizes, that a model of this config is made of.
    No more than a tensor of them is in memory."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    from dpeer.model.lm import load_parts

    auto = AutoModelForImageTextToText if load_parts(str(folder)) else AutoModelForCausalLM
    _, info = auto.from_pretrained(folder, device_map="meta", output_loading_info=True, trust_remote_code=False)
    if wrong := sorted(str(name) for names in ("missing_keys", "mismatched_keys") for name in info[names]):
        raise CheckpointError(
            f"export: {len(wrong)} weights are not in the files as the model needs them, among them "
            f"{', '.join(wrong[:3])}. The folder was left at {folder} for inspection; the checkpoint is unharmed."
        )


def rename(temporary: Path, folder: Path) -> None:
    previous = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        os.replace(folder, previous)
    os.replace(temporary, folder)
    shutil.rmtree(previous, ignore_errors=True)


def read_back(folder: Path, written: Mapping[str, str]) -> dict[str, Entry]:
    """Size and checksum of each file, from the disk as far as the system can be made to forget what it has in memory.
    CheckpointError: a file's tensors are not those that were written."""
    entries = {}
    for name, expected in written.items():
        whole, data, size = xxhash.xxh3_128(), xxhash.xxh3_128(), 0
        for block in _blocks(folder / name):
            whole.update(block)
            data.update(block[max(0, 8 + ROOM - size) :])
            size += len(block)
        if data.hexdigest() != expected:
            raise CheckpointError(
                f"export: {folder / name} does not hold the tensors that were written to it: the disk has changed "
                "them. The checkpoint is unharmed; export again, to another disk if that repeats."
            )
        entries[name] = Entry(bytes=size, xxh3=str(whole.hexdigest()))
    return entries


def _blocks(path: Path) -> Iterator[memoryview]:
    buffer = bytearray(BLOCK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as stream:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while count := stream.readinto(buffer):
            yield view[:count]
