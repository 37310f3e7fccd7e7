"""Psychometrics: from ratings to abilities, with what can and cannot be claimed.

from dpeer.eval.irt import Options, estimate
result = estimate("ratings.csv", base="base")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpeer.eval.irt.claims import Claims as Claims
    from dpeer.eval.irt.estimation import estimate as estimate
    from dpeer.eval.irt.result import Result as Result
    from dpeer.eval.irt.types import Options as Options

_PLACES = {"Claims": "claims", "Options": "types", "Result": "result", "estimate": "estimation"}
__all__ = ["Claims", "Options", "Result", "estimate"]


def __getattr__(name: str) -> Any:
    """Loaded when asked for, so that a part of the room can be had without the rest."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
