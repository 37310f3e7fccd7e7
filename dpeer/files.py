"""Files that are either whole or absent."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from dpeer.json_safe import json_safe

PACKAGE = Path(__file__).parent
"""The folder of the installed package, with everything that it ships."""


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # process ids repeat on other nodes
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(json_safe(value), indent=1, allow_nan=False) + "\n")


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
