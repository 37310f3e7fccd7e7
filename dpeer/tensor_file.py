"""Sealed safetensors files, for tensors that fit into memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dpeer.files import write_bytes
from dpeer.integrity import BLANK, Damaged, seal, verify


def write_tensors(path: Path, tensors: Mapping[str, Tensor], words: Mapping[str, str] | None = None) -> None:
    """Write tensors and words about them, whole or not at all."""
    write_bytes(path, seal(save(dict(tensors), {**(words or {}), "checksum": BLANK})))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `write_tensors` wrote, or a safetensors file without a checksum. Damaged: it is neither."""
    content = path.read_bytes()
    verify(content)
    try:
        tensors = load(content)
        words = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
    except (SafetensorError, ValueError) as error:
        raise Damaged(f"is not readable ({error})") from error
    words.pop("checksum", None)
    return tensors, words
