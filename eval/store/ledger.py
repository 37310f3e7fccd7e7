"""What judges have cost, as the manifest beside their ratings says."""

from __future__ import annotations

from pathlib import Path

from dpeer.errors import CheckpointError
from dpeer.integrity import read_state

MANIFEST = "manifest.json"


def prices_of_answers(table: Path) -> tuple[str, dict[str, float]]:
    """Currency, and the mean price of an answer of each judge whose price is known; empty without a manifest.

    table: `ratings.parquet` of `dpeer judge`, its folder `ratings`, or the folder of both. A damaged manifest is left
    to `dpeer judge` and `dpeer fsck`.
    """
    folder = table.parent if table.is_file() else table
    place = next((f / MANIFEST for f in (folder / "ratings", folder) if (f / MANIFEST).is_file()), None)
    if place is None:
        return "", {}
    try:
        told = read_state(place, "It says what was spent.", CheckpointError)
        known = {name: entry for name, entry in told["models"].items() if entry["spent"] is not None}
        return told["currency"], {n: e["spent"] / e["answers"] for n, e in known.items() if e["answers"]}
    except (CheckpointError, KeyError, TypeError, AttributeError):  # such as the manifest of something else
        return "", {}
