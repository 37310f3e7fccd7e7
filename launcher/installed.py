"""Whether the files of the installed package are those that its wheel brought."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path


def changed_files(name: str = "dpeer") -> tuple[int, list[str]] | None:
    """(files of the package, those that are absent or changed); None where no wheel lists them, as in a clone."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return None
    listed = {str(file): file.hash for file in found.files or () if file.hash and file.parts[0] == name}
    if not listed or _editable(found):
        return None
    bad = []
    for file, recorded in listed.items():
        try:
            content = Path(str(found.locate_file(file))).read_bytes()
        except OSError:
            bad.append(f"{file} is absent")
            continue
        digest = base64.urlsafe_b64encode(hashlib.new(recorded.mode, content).digest()).decode().rstrip("=")
        if digest != recorded.value:
            bad.append(f"{file} is changed")
    return len(listed), bad


def _editable(found: Distribution) -> bool:
    direct = json.loads(found.read_text("direct_url.json") or "{}")
    return bool(direct.get("dir_info", {}).get("editable"))
