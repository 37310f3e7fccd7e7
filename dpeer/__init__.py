"""dpeer: turn a language model into a dignified peer, and prove that it worked.

`dpeer.Lagrangian` and `dpeer.estimate_abilities` are loaded, with what they need, when they are first touched.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_DOORS = {
    "Lagrangian": ("dpeer.objective", "Lagrangian"),
    "estimate_abilities": ("dpeer.eval.irt", "estimate"),
}


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module 'dpeer' has no attribute '{name}'")
    module, attribute = _DOORS[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_DOORS])
