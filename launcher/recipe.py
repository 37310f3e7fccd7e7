"""Finding recipes: a shipped name such as `demo`, or the path of a YAML file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from dpeer.config import Config
from dpeer.config_io import load_config, parsed_section
from dpeer.config_sources import Map
from dpeer.errors import ConfigError

RECIPES = Path(__file__).parent / "recipes"
EVALUATION = RECIPES / "evaluation"
BUILD = RECIPES / "build"
HOW_TO_SET = "Keys of a recipe, such as model.template_kwargs or data.end_of_turn, are given by --set KEY=VALUE"


def recipe_names(folder: Path = RECIPES) -> tuple[str, ...]:
    """Names of the shipped recipes, sorted: of training, or of the folder EVALUATION or BUILD."""
    return tuple(sorted(path.stem for path in folder.glob("*.yaml")))


def training_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """The config behind a recipe argument."""
    return load_config(recipe_path(name), overrides, shipped=RECIPES)


def config_of(data: str, model: str, map_: Map | None, overrides: Sequence[str] = ()) -> Config:
    """What a recipe for these records and this model says of both, with those of the overrides that speak of either."""
    about = [o for o in overrides if o.strip().startswith(("model.", "data."))]
    source = {"train": data} | ({"map": map_.said} if map_ else {})
    values = {"name": "given", "model": {"path": model}, "data": source, "training": {"epochs": 1}}
    return parsed_section(Config, values, about, "--set")


def recipe_path(name: str, folder: Path = RECIPES) -> Path:
    """The file behind a recipe argument. Raises ConfigError for a name that is neither shipped nor a file."""
    names = recipe_names(folder)
    if name in names:
        return folder / f"{name}.yaml"
    path = Path(name)
    if path.is_file():
        return path
    near = difflib.get_close_matches(path.stem, names, 1)
    meant = f"; did you mean '{near[0]}'?" if near else "."
    if path.is_dir():
        what = "a folder, not a recipe's file"
    else:
        what = "no such file" if path.name != name or path.suffix else "no shipped recipe, and no file"
    raise ConfigError(f"{name}: {what}{meant} Shipped recipes: {', '.join(names)}")


def beside(recipe: str, file: Path, folder: Path) -> Path:
    """The recipe that another file names: a shipped name, or a path relative to that file or to here."""
    path = file.parent / recipe
    return path if recipe not in recipe_names(folder) and path.is_file() else recipe_path(recipe, folder)
