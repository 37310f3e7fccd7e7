"""Named kinds of things: one class each, found by name; an unknown name is an error wherever it is met."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Generic, TypeVar

from dpeer.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """`field`: the config field whose value names an entry, for messages."""

    def __init__(self, field: str) -> None:
        self.field = field
        self._classes: dict[str, type[T]] = {}

    def add(self, name: str, cls: type[T]) -> None:
        if self._classes.get(name, cls) is not cls:
            raise ValueError(f"{self.field} {name!r} exists already ({self._classes[name].__qualname__})")
        self._classes[name] = cls

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._classes)

    def __getitem__(self, name: str) -> type[T]:
        """The class of that name. ConfigError: there is none."""
        if name not in self._classes:
            near = difflib.get_close_matches(name, self._classes, 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{self.field} {name!r} is unknown; choose one of {', '.join(self.names)}{meant}")
        return self._classes[name]


def options_of(field: str, known: Mapping[str, float | None], given: Mapping[str, float]) -> dict[str, float]:
    """Given options over the defaults of `known`, in which None marks one that must be given. ConfigError otherwise."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{field}.{name} is unknown; known here: {', '.join(known) or 'none'}{meant}")
    values = {name: given.get(name, default) for name, default in known.items()}
    if missing := [name for name, value in values.items() if value is None]:
        raise ConfigError(f"{field}.{missing[0]} must be given")
    return {name: value for name, value in values.items() if value is not None}
