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
    """Entries by name. The first look-up imports every file of `package`, and those that define an entry register it.

    So a file of that folder must be cheap to import: what is heavy is imported inside functions. Other distributions
    join in through the entry point group that is called like the package; each point names a module to import.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind, self.package = kind, package
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
        self._import_package()
        return tuple(sorted(self._entries))

    def __getitem__(self, name: str) -> T:
        """Raises ConfigError that lists the names and the nearest one."""
        self._import_package()
        if name not in self._entries:
            nearest = difflib.get_close_matches(name, self._entries, 1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            raise ConfigError(f"there is no {self.kind} {name!r}; registered are {', '.join(self.names())}{hint}")
        return self._entries[name]

    def _import_package(self) -> None:
        if not self._complete:
            for module in iter_modules(import_module(self.package).__path__):
                import_module(f"{self.package}.{module.name}")
            for point in entry_points(group=self.package):
                point.load()
            self._complete = True


def _origin(entry: object) -> tuple[str, str]:
    """Module and name of a function or class, or of the class of an object."""
    definition = entry if hasattr(entry, "__qualname__") else type(entry)
    return definition.__module__, str(getattr(definition, "__qualname__", ""))
