"""Psychometrics: from ratings to abilities, with what can and cannot be claimed.

from dpeer.eval.irt import Options, estimate
result = estimate("ratings.csv", base="base")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpeer.eval.irt.estimation import estimate as estimate
    from dpeer.eval.irt.types import Options as Options
    from dpeer.eval.irt.types import Result as Result

__all__ = ["Options", "Result", "estimate"]


def __getattr__(name: str) -> Any:
    """Load what is asked for, so that a part of the room can be had without the rest."""
    if name == "estimate":
        from dpeer.eval.irt.estimation import estimate

        return estimate
    if name in ("Options", "Result"):
        from dpeer.eval.irt import types

        return getattr(types, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
