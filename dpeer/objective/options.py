"""Numbers that a form or a controller asks for beyond the fields of the config."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from dpeer.errors import ConfigError


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
