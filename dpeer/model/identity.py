"""Which weights are these? A hash that is cheap for 140 GB and still changes with any training of the weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from transformers.utils import cached_file

BLOCK = 1 << 16
BLOCKS = 64  # per file: files of up to 4 MiB are read whole


ADAPTER = "adapter_config.json"


def adapter_hash(path: str, revision: str | None = None) -> str:
    """The same of a PEFT adapter: its scale stands in its config only."""
    return model_hash(path, revision, ADAPTER)


def model_hash(path: str, revision: str | None = None, described: str = "config.json") -> str:
    """sha256 (hex) over names, sizes and contents of a model's weight and config files; a hub id counts by its commit.

    Of a large file only 64 evenly spaced blocks of 64 KiB are read, the first (with the tensor index) among them: any
    optimizer step changes practically every block, so only a deliberate edit between the blocks goes unnoticed.
    """
    folder = Path(path)
    if not folder.is_dir():
        config = cached_file(path, described, revision=revision, _raise_exceptions_for_missing_entries=False)
        if config is None:
            return hashlib.sha256(json.dumps([path, revision]).encode()).hexdigest()
        folder = Path(config).parent
        if folder.parent.name == "snapshots":  # named after its commit, which pins every file, downloaded yet or not
            return hashlib.sha256(json.dumps([path, folder.name]).encode()).hexdigest()
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".bin") or file.name == described:
            size = file.stat().st_size
            digest.update(json.dumps([file.name, size]).encode())
            _update(digest, file, size)
    return digest.hexdigest()


def _update(digest: hashlib._Hash, file: Path, size: int) -> None:
    whole = -(-size // BLOCK)
    chosen = range(whole) if whole <= BLOCKS else sorted({round(i * (whole - 1) / (BLOCKS - 1)) for i in range(BLOCKS)})
    with file.open("rb") as stream:
        for block in chosen:
            stream.seek(block * BLOCK)
            digest.update(stream.read(BLOCK))
