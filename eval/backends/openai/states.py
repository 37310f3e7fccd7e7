"""What endpoints say of a batch: its state, in the words of many vendors, its end and its files. Pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

ENDED = frozenset(
    (
        *("completed", "complete", "succeeded", "success", "successful", "done", "finished", "ended"),
        *("failed", "failure", "error", "expired", "timeout", "timed_out", "timeout_exceeded", "cancelled", "canceled"),
    )
)
UNDER_WAY = frozenset(
    (
        *("validating", "queued", "in_queue", "pending", "created", "submitted", "scheduled", "not_started"),
        *("in_progress", "started", "running", "processing", "finalizing", "finalising"),
        *("cancelling", "canceling", "cancellation_requested"),
    )
)
WINDOW_S, GRACE_S = 24 * 3600.0, 3600.0
"""Within which a batch ends, and by how much an endpoint may be late."""


def status(batch: Mapping[str, Any]) -> str:
    """The state of a batch as most endpoints write it."""
    said = re.sub(r"[\s-]+", "_", str(batch.get("status") or "").strip().casefold())
    return re.sub(r"^(?:batch|job)_(?:state|status)_", "", said)


def end(batch: Mapping[str, Any], began: float) -> float:
    """When a batch that was first looked at when it `began` is to have ended, in seconds since 1970."""
    for key, window in (("expires_at", 0.0), ("created_at", WINDOW_S)):
        at = batch.get(key)
        if isinstance(at, int | float) and not isinstance(at, bool) and math.isfinite(at) and at > 0:
            return (at / 1000 if at > 1e11 else at) + window
    return began + WINDOW_S


def files(batch: Mapping[str, Any]) -> list[str]:
    """Ids of the files with answers and with errors."""
    return [str(batch[key]) for key in ("output_file_id", "error_file_id") if batch.get(key)]
