"""Finding recipes: a shipped name such as `demo`, or the path of a YAML file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from dpeer.config import Config
from dpeer.config_io import load_config
from dpeer.errors import ConfigError

RECIPES = Path(__file__).parent / "recipes"
EVALUATION = RECIPES / "evaluation"


def recipe_names(folder: Path = RECIPES) -> tuple[str, ...]:
    """Names of the shipped recipes, sorted: of training, or of the folder EVALUATION."""
    return tuple(sorted(path.stem for path in folder.glob("*.yaml")))


def training_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """The config behind a recipe argument."""
    return load_config(recipe_path(name), overrides, shipped=RECIPES)


def recipe_path(name: str, folder: Path = RECIPES) -> Path:
    """The file behind a recipe argument. Raises ConfigError for a name that is neither shipped nor a file."""
    names = recipe_names(folder)
    if name in names:
        return folder / f"{name}.yaml"
    path = Path(name)
    if path.is_file():
        return path
    near = difflib.get_close_matches(path.stem, names, 1)
    meant = f"did you mean '{near[0]}'? " if near else ""
    raise ConfigError(f"'{name}' is neither a recipe file nor a shipped recipe; {meant}Shipped: {', '.join(names)}")
