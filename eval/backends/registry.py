"""The backends by name, and what they know of a model."""

from __future__ import annotations

from dpeer.eval.backends.config import Served
from dpeer.eval.backends.types import Backend
from dpeer.registry import Registry

BACKENDS: Registry[Backend] = Registry("backend", __package__)


def identity(served: Served) -> str:
    """A hash of what answers under this name; see `Backend.identity`."""
    return BACKENDS[served.backend].identity(served)


def family(served: Served) -> str | None:
    """`Served.family`, else what its backend knows; None: unknown."""
    return served.family.strip().lower() if served.family else BACKENDS[served.backend].family(served)
