"""Values that strict JSON cannot hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

AS_IT_IS = (int, str, bool, type(None))


def json_safe(value: Any) -> Any:
    """Strict JSON of nested dicts, lists and numbers: nan becomes null, infinities become "inf" and "-inf"."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, (str, int)) or value is None:
        return value
    if isinstance(value, (dict, Mapping)):
        return {k: v if _is_safe(v) else json_safe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [v if _is_safe(v) else json_safe(v) for v in value]
    return value


def _is_safe(value: Any) -> bool:
    """Of the most frequent values, at once."""
    kind = type(value)
    return math.isfinite(value) if kind is float else kind in AS_IT_IS
