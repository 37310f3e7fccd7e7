"""The sweep file: a recipe and what varies; resolved into cells with stable names."""

from __future__ import annotations

import difflib
import graphlib
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from dpeer.config import LONGEST_NAME, Config, Section
from dpeer.config_io import load_config, load_section, resolved
from dpeer.errors import ConfigError
from dpeer.escape import file_name
from dpeer.launcher.recipe import RECIPES, recipe_names, recipe_path
from dpeer.training.run_dir import MAY_CHANGE, RunDir

SWEEPS = RECIPES / "sweeps"
OWN_KEYS = {  # keys that the sweep sets itself
    "name": "cells are named by `label`",
    "seed": "list the seeds under `seeds`: cells of equal seed see the same batches and are compared in pairs",
    "output_dir": "set it once, under `changes`",
}
ID_CHARS = 8
LONGEST_LABEL = 120  # bytes; the seed and the id follow in a run's name
RECIPE = "recipe"  # beside config keys in a cell or the grid: another recipe than the sweep's
EXPORT_OF = "cell:"  # model.path = cell:NAME is what the cell NAME of the same seed exports


class Sweep(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_NAME)
    """Name of the sweep; its folder is the recipe's output_dir / name."""
    recipe: str
    """Recipe that all cells share: a shipped name, or a path relative to this file."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """What every cell changes in the recipe, written as a recipe is."""
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Dotted config key -> its values; every combination is a cell. The key `recipe` takes the place of the sweep's."""
    cells: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Further cells beside the grid, such as baselines: name -> dotted config key -> value. `model.path: cell:NAME`
    starts from the export of the cell NAME of the same seed."""
    seeds: tuple[int, ...] = ()
    """Seeds that every cell is run with; default: the recipe's own."""
    label: str | None = None
    """Name of a grid cell, e.g. "eps{tolerance}"; default: all grid keys with their values."""
    retries: int = Field(1, ge=0)
    """Further attempts at a cell whose workers or driver were lost; faults of recipe or data are not tried again."""
    lanes: int | None = Field(None, ge=1)
    """Most cells trained side by side; default: as many as the cluster's resources allow."""
    prompts: Path | None = None
    """Toy world only: prompts.jsonl; each cell's model answers them and the oracle reads the answers."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep. `values`: the dotted keys in which its setting differs from the recipe; `seed` apart.
    `needs`: names of the cells whose exports it reads."""

    index: int
    id: str
    label: str
    seed: int
    values: dict[str, Any]
    config: Config
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.config.name


def load_sweep(path: Path | str, overrides: Sequence[str] = ()) -> Sweep:
    return load_section(Sweep, path, overrides, shipped=SWEEPS)


def sweep_path(name: str) -> Path:
    """The file behind a sweep argument: a shipped name or a path."""
    return recipe_path(name, SWEEPS)


def resolve(sweep: Sweep, path: Path) -> tuple[Cell, ...]:
    """The cells of a sweep file, seeds outermost, so that a further seed leaves earlier numbers as they are.

    A cell's id is a hash of its resolved config, less its name and whatever cannot change a result (where it runs, how
    often it saves) unless the sweep varies just that. Raises ConfigError: unknown keys, values out of range, a key that
    the sweep sets itself, two cells that are the same run.
    """
    recipe = _recipe_file(sweep.recipe, path)
    settings = list(_settings(sweep, path))
    labels = [label for label, _ in settings]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ConfigError(
            f"{path}: two settings are both called {twice}; let `label` hold every grid key, and name further cells "
            "otherwise than any of the grid"
        )
    varied = {key for _, values in settings for key in values}
    base = _config(sweep, recipe, path, {}, "the recipe")
    folder = base.output_dir / sweep.name
    cells: list[Cell] = []
    for seed in sweep.seeds or (base.seed,):
        configs = {
            label: _config(sweep, recipe, path, {**values, "seed": seed, "output_dir": str(folder)}, f"cell {label}")
            for label, values in settings
        }
        named = _named(configs, varied, path)
        for label, values in settings:
            digest, config, needs = named[label]
            if twin := next((c for c in cells if c.id == digest), None):
                raise ConfigError(
                    f"{path}: cells {twin.label} and {label} (seed {seed}) are the same run; remove one of them or let "
                    "them differ in something that changes a result"
                )
            cells.append(Cell(len(cells), digest, label, seed, values, config, needs))
    return tuple(cells)


def _named(
    configs: Mapping[str, Config], varied: set[str], path: Path
) -> dict[str, tuple[str, Config, tuple[str, ...]]]:
    """Label -> (id, config with its name and real paths, names of the cells that it starts from), for one seed."""
    named: dict[str, tuple[str, Config, tuple[str, ...]]] = {}
    for label in _order(configs, path):
        config = configs[label]
        starts = {other: named[other] for other in _starts(config).values()}
        digest = _digest(_with_starts(config, {o: f"{EXPORT_OF}{id_}" for o, (id_, _, _) in starts.items()}), varied)
        config = _with_starts(config, {o: str(RunDir(c.run_dir).export) for o, (_, c, _) in starts.items()})
        config = config.model_copy(update={"name": f"{label}-s{config.seed}-{digest[:ID_CHARS]}"})
        named[label] = digest, config, tuple(c.name for _, c, _ in starts.values())
    return named


def _starts(config: Config) -> dict[str, str]:
    """Field of `model` -> label of the cell whose export it names."""
    paths = {"path": config.model.path, "reference_path": config.model.reference_path or ""}
    return {key: p.removeprefix(EXPORT_OF).strip() for key, p in paths.items() if p.startswith(EXPORT_OF)}


def _with_starts(config: Config, exports: Mapping[str, str]) -> Config:
    """The config with `exports` (label -> path) in place of cells."""
    found = {key: exports[label] for key, label in _starts(config).items()}
    return config.model_copy(update={"model": config.model.model_copy(update=found)})


def _order(configs: Mapping[str, Config], path: Path) -> list[str]:
    """Labels, each after those that it starts from. ConfigError: no such cell, or cells that wait for each other."""
    graph = {label: _starts(config) for label, config in configs.items()}
    for label, starts in graph.items():
        for key, wanted in starts.items():
            if wanted not in graph:
                near = difflib.get_close_matches(wanted, graph, 1)
                meant = f"did you mean {EXPORT_OF}{near[0]}? " if near else ""
                raise ConfigError(
                    f"{path}, cell {label}: model.{key}: {EXPORT_OF}{wanted} names no cell of this sweep; {meant}"
                    f"Cells: {', '.join(graph)}"
                )
    try:
        return list(graphlib.TopologicalSorter({a: b.values() for a, b in graph.items()}).static_order())
    except graphlib.CycleError as error:
        circle = " <- ".join(error.args[1])
        raise ConfigError(
            f"{path}: cells start from each other's exports in a circle ({circle}); let one of them start from a model"
        ) from None


def folder_of(sweep: Sweep, path: Path) -> Path:
    """Where a sweep file's runs lie."""
    return _config(sweep, _recipe_file(sweep.recipe, path), path, {}, "the recipe").output_dir / sweep.name


def _recipe_file(recipe: str, sweep_file: Path) -> Path:
    beside = sweep_file.parent / recipe
    return beside if recipe not in recipe_names() and beside.is_file() else recipe_path(recipe)


def _settings(sweep: Sweep, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label, values) of the grid's combinations, then of the further cells."""
    for where, keys in (("grid", sweep.grid), *((f"cells.{n}", v) for n, v in sweep.cells.items())):
        for key in keys:
            if why := OWN_KEYS.get(key):
                raise ConfigError(f"{path}: {where}.{key}: not here; {why}")
    if empty := [key for key, values in sweep.grid.items() if not values]:
        raise ConfigError(f"{path}: grid.{empty[0]}: no value given; list at least one")
    if sweep.grid:
        for combination in itertools.product(*sweep.grid.values()):
            values = dict(zip(sweep.grid, combination, strict=True))
            yield _label(sweep.label, values, path), values
    elif not sweep.cells:
        yield "recipe", {}
    for label, values in sweep.cells.items():
        yield _safe(label), values


def _config(sweep: Sweep, recipe: Path, path: Path, values: Mapping[str, Any], where: str) -> Config:
    """One reference cache serves all cells: that mode is the default here, whatever the recipe says."""
    given = {"cluster.reference"} & {*values, *_dotted(sweep.changes)}
    values = {**({} if given else {"cluster.reference": "cache"}), **values}
    try:
        if other := values.pop(RECIPE, None):
            recipe = _recipe_file(str(other), path)
        return load_config(recipe, changes=sweep.changes, values=values, shipped=RECIPES)
    except ConfigError as error:
        raise ConfigError(f"{path}, {where}: {error}") from None


def _digest(config: Config, varied: set[str]) -> str:
    def counts(key: str) -> bool:
        named = any(key == v or key.startswith(f"{v}.") for v in varied)
        return named or (key != "name" and not key.startswith(MAY_CHANGE))

    content = {key: value for key, value in _leaves(resolved(config)) if counts(key)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _dotted(tree: Mapping[str, Any]) -> set[str]:
    return {key for key, _ in _leaves(tree)}


def _label(template: str | None, values: Mapping[str, Any], path: Path) -> str:
    """Braces hold a grid key, or as much of its end as tells it from the others."""
    if template is None:
        template = "-".join(f"{key.rpartition('.')[2]}{{{key}}}" for key in values)

    def fill(match: re.Match[str]) -> str:
        wanted = match.group(1)
        matches = [key for key in values if key == wanted] or [key for key in values if key.endswith(f".{wanted}")]
        if len(matches) != 1:
            near = difflib.get_close_matches(wanted, values, 1, cutoff=0.3)
            meant = f"; did you mean {{{near[0]}}}?" if near else ""
            problem = "names several grid keys" if matches else "names no grid key"
            raise ConfigError(f"{path}: label: {{{wanted}}} {problem}{meant} Grid keys: {', '.join(values) or 'none'}")
        return _text(values[matches[0]])

    return _safe(re.sub(r"\{([^{}]*)\}", fill, template))


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "-".join(f"{k}{_text(v)}" for k, v in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _safe(text: str) -> str:
    """As a run's name allows it."""
    return file_name(re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "cell", LONGEST_LABEL)
