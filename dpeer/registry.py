"""Things by name: each is registered by the one file that defines it."""

from __future__ import annotations

import difflib
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Generic, TypeVar

from dpeer.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries by name. `place` is a module, whose import registers its own, or a package: then the first look-up
    imports every file of that folder, and those that define an entry register it.

    So such a file must be cheap to import: what is heavy is imported inside functions. Other distributions join in
    through the entry point group that is called like the place; each point names a module to import.
    """

    def __init__(self, kind: str, place: str) -> None:
        self.kind, self.place = kind, place
        self._entries: dict[str, T] = {}
        self._complete = False

    def register(self, name: str, entry: T) -> None:
        """Raises ConfigError when something else has the name; the same definition may be executed again."""
        if name in self._entries and _origin(self._entries[name]) != _origin(entry):
            taken = ".".join(_origin(self._entries[name]))
            raise ConfigError(f"{self.kind} {name!r} is registered already, by {taken}. Give this one another name.")
        self._entries[name] = entry

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        self._import_all()
        return tuple(sorted(self._entries))

    def __getitem__(self, name: str) -> T:
        """Raises ConfigError that lists the names and the nearest one."""
        self._import_all()
        if name not in self._entries:
            nearest = difflib.get_close_matches(name, self._entries, 1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            error = ConfigError(f"there is no {self.kind} {name!r}; registered: {', '.join(self.names())}{hint}")
            error.module = self.place
            raise error
        return self._entries[name]

    def _import_all(self) -> None:
        if not self._complete:
            self._complete = True
            for module in iter_modules(getattr(import_module(self.place), "__path__", ())):
                import_module(f"{self.place}.{module.name}")
            for point in entry_points(group=self.place):
                point.load()


def _origin(entry: object) -> tuple[str, str]:
    """Module and name of a function or class, or of the class of an object."""
    definition = entry if hasattr(entry, "__qualname__") else type(entry)
    return definition.__module__, str(getattr(definition, "__qualname__", ""))
