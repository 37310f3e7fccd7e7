"""The method as pure functions: edge losses, constraint forms, dual state, ledger, certificate.

from dpeer.objective import Lagrangian, Objective
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpeer.config import Constraint as Constraint
    from dpeer.config import Dual as Dual
    from dpeer.config import Objective as Objective
    from dpeer.objective.lagrangian import Lagrangian as Lagrangian

__all__ = ["Constraint", "Dual", "Lagrangian", "Objective"]
_PLACES = {"Lagrangian": "dpeer.objective.lagrangian"}


def __getattr__(name: str) -> Any:
    """Loaded when asked for: names of forms are wanted where torch is not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES.get(name, "dpeer.config")), name)
