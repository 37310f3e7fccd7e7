"""Finding recipes: a shipped name such as `demo`, or the path of a YAML file."""

from __future__ import annotations

import difflib
from pathlib import Path

from dpeer.errors import ConfigError

RECIPES = Path(__file__).parent / "recipes"


def recipe_names() -> tuple[str, ...]:
    """Names of the shipped recipes, sorted."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.yaml")))


def recipe_path(name: str) -> Path:
    """The file behind a recipe argument. Raises ConfigError for a name that is neither shipped nor a file."""
    if name in recipe_names():
        return RECIPES / f"{name}.yaml"
    path = Path(name)
    if path.is_file():
        return path
    near = difflib.get_close_matches(path.stem, recipe_names(), 1)
    meant = f"did you mean '{near[0]}'? " if near else ""
    raise ConfigError(
        f"'{name}' is neither a recipe file nor a shipped recipe; {meant}Shipped: {', '.join(recipe_names())}"
    )
