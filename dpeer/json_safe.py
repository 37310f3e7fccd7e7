"""Values that strict JSON cannot hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def json_safe(value: Any) -> Any:
    """Strict JSON of nested dicts, lists and numbers: nan becomes null, infinities become "inf" and "-inf"."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, (str, int)) or value is None:
        return value
    if isinstance(value, (dict, Mapping)):
        return {k: json_safe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(v) for v in value]
    return value
