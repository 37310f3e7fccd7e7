"""Safetensors files of a model that is never whole in memory: written tensor by tensor, and read back.

A file's header names all its tensors, so it is written last, into room that is kept at the file's beginning: headers
may end in spaces.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

import torch
import xxhash
from torch import Tensor

from dpeer.errors import CheckpointError
from dpeer.files import ROOM, follow_umask
from dpeer.training.publish import BLOCK

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LIMIT = 5 * 10**9
"""Bytes of tensors in a file; a larger tensor has one of its own."""
NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
"""As safetensors spells them."""


class _File:
    """One that is open. Its tensors are of one dtype, so that each begins at a multiple of its element's size."""

    def __init__(self, path: Path) -> None:
        self.path, self.tensors, self.size = path, dict[str, object](), 0
        self.named = 2  # bytes of the header
        self.hash = xxhash.xxh3_128()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.stream = path.open("wb")
        self.stream.seek(8 + ROOM)

    def add(self, name: str, tensor: Tensor) -> None:
        end = self.size + tensor.nbytes
        about = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [self.size, end]}
        content = memoryview(cast(Any, tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
        for start in range(0, len(content), BLOCK):
            self.hash.update(content[start : start + BLOCK])
            self.stream.write(content[start : start + BLOCK])
        self.tensors[name], self.size = about, end
        self.named += _length(name)

    def close(self) -> None:
        header = json.dumps({"__metadata__": {"format": "pt"}} | self.tensors).encode()
        assert len(header) <= ROOM
        self.stream.seek(0)
        self.stream.write(ROOM.to_bytes(8, "little") + header.ljust(ROOM))
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()
        follow_umask(self.path)


def _length(name: str) -> int:
    """Of a tensor's part of a header, at most."""
    return len(json.dumps(name)) + 160


class Weights:
    """`add` each tensor, then `finish`. In between nothing in `folder` has the name of a model's file."""

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder, self.limit = folder, limit or LIMIT
        self.where: dict[str, _File] = {}
        self.files: list[_File] = []
        self._open: dict[torch.dtype, _File] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """`tensor`: in the host's memory; not kept."""
        if name in self.where:
            raise CheckpointError(f"export: two weights are named {name}. Nothing was written.")
        file = self._open.get(tensor.dtype)
        if file and (file.size + tensor.nbytes > self.limit or file.named + _length(name) > ROOM - 100):
            file.close()
            file = None
        if file is None:
            file = _File(self.folder / f".part-{len(self.files):05d}")
            self.files.append(file)
            self._open[tensor.dtype] = file
        file.add(name, tensor)
        self.where[name] = file

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)

    def finish(self) -> dict[str, str]:
        """Give the files their names, with an index where they are several; the checksum of each one's tensors."""
        for file in self._open.values():
            file.close()
        count = len(self.files)
        names = [SINGLE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        of = dict(zip(self.files, names, strict=True))
        for file, name in of.items():
            os.replace(file.path, self.folder / name)
        if count > 1:
            index = {"weight_map": {tensor: of[self.where[tensor]] for tensor in sorted(self.where)}}
            content = {"metadata": {"total_size": self.bytes}} | index
            (self.folder / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return {name: str(file.hash.hexdigest()) for file, name in of.items()}
