"""The loop file, and the training and evaluation configs of its rounds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, model_validator

from dpeer.config import LONGEST_NAME, Config, Section
from dpeer.config_io import load_config, load_section, resolved
from dpeer.config_sources import Sources, paths
from dpeer.errors import ConfigError
from dpeer.launcher.loop.built import build_spec, places
from dpeer.launcher.loop.rule import Rule
from dpeer.launcher.recipe import EVALUATION, RECIPES, beside, recipe_path

if TYPE_CHECKING:
    from dpeer.eval.config import EvalConfig

LOOPS = RECIPES / "loops"
BASE = "base"
FREE = {"training": ("name", "cluster"), "evaluation": ("models", "farm", "engine", "prices", "budget")}
"""Sections that may differ between the rounds of a loop, or between its starts."""


class Fit(Section):
    warmup: int = Field(1000, ge=10)
    """Warm-up iterations per chain of each round's fit."""
    draws: int = Field(1000, ge=10)
    """Draws per chain after warm-up; more where a round's fit does not pass its diagnostics."""
    seed: int = Field(1, ge=1)
    """Seed of the sampler."""


class Loop(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_NAME)
    """Name of the loop; its folder is the recipe's output_dir / name."""
    recipe: str
    """Training recipe of all rounds: a shipped name, or a path relative to this file. Its tolerances are those of the
    first round."""
    evaluation: str
    """Evaluation recipe (prompts, judges, rubric): a shipped name, or a path relative to this file. Its models are
    replaced by the base model and the rounds."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """What every round changes in the training recipe, written as a recipe is."""
    judging: dict[str, Any] = Field(default_factory=dict)
    """What the loop changes in the evaluation recipe, written as a recipe is."""
    data: Sources | None = None
    """Data set that the rounds train on, instead of the recipe's data.train. Where the recipe names files for
    data.dual or data.heldout, give these of the new data too, in `changes`."""
    build: str | None = None
    """Spec of `dpeer build`, a shipped name or a path relative to this file: the data set is made before round 1, and
    its splits train, dual and test become data.train, data.dual and data.heldout, except those given in `changes`."""
    rounds: int = Field(3, ge=1, le=99)
    """Most rounds."""
    patience: int = Field(1, ge=1)
    """Rounds in a row without a clear gain of the weakest ability after which the loop ends."""
    rule: Rule = Rule()
    fit: Fit = Fit()

    @model_validator(mode="after")
    def _one_data_set(self) -> Loop:
        if self.data is not None and self.build is not None:
            raise ValueError("data and build are both given; keep the one that the rounds are to train on")
        return self


def load_loop(name: str, overrides: Sequence[str] = ()) -> tuple[Loop, Path]:
    """A loop file, shipped or a path, and where it lies."""
    path = recipe_path(name, LOOPS)
    return load_section(Loop, path, overrides, shipped=LOOPS), path


def run_name(number: int) -> str:
    return f"round-{number}"


def training(loop: Loop, path: Path, number: int, tolerance: Mapping[str, float] | None = None) -> Config:
    """The config of one round. ConfigError: a form without tolerances of single losses, or nothing that is held out."""
    values: dict[str, Any] = {"name": run_name(number)}
    if loop.data is not None:
        values["data.train"] = loop.data
    if loop.build is not None:
        made = places(build_spec(loop.build, path), set(loop.changes.get("data") or {}))
        values |= {f"data.{key}": place for key, place in made.items()}
    if tolerance is not None:
        values["objective.constraint.tolerance"] = {d: "inf" if math.isinf(t) else t for d, t in tolerance.items()}
    recipe = beside(loop.recipe, path, RECIPES)
    config = load_config(recipe, changes=loop.changes, values=values, shipped=RECIPES)
    _refuse(config, path)
    if loop.data is not None:
        _refuse_parted(config, loop.changes.get("data") or {}, path)
    return config.model_copy(update={"output_dir": config.output_dir / loop.name})


def evaluation(loop: Loop, path: Path, config: Config, rounds: int) -> EvalConfig:
    """The evaluation of the base model and so many rounds, all in one table of ratings."""
    from dpeer.eval.config import EvalConfig

    served = [{"name": BASE, "path": config.model.path, "revision": config.model.revision}]
    served += [
        {"name": run_name(n), "path": str(config.output_dir / run_name(n) / "export")} for n in range(1, rounds + 1)
    ]
    values = (f"models={json.dumps(served)}", f"output_dir={json.dumps(str(config.output_dir))}", "name=evaluation")
    recipe = beside(loop.evaluation, path, EVALUATION)
    return load_section(EvalConfig, recipe, (*values, f"base={BASE}"), changes=loop.judging, shipped=EVALUATION)


def fixed(loop: Loop, config: Config, judged: EvalConfig) -> dict[str, Any]:
    """What all rounds have in common; a loop that goes on must find it as it was."""
    trees = {"training": resolved(config), "evaluation": resolved(judged)}
    kept = {kind: {k: v for k, v in tree.items() if k not in FREE[kind]} for kind, tree in trees.items()}
    return {"rule": resolved(loop.rule), **kept}


def completed(begun: Mapping[str, Any], config: Config, judged: EvalConfig) -> dict[str, Any]:
    """`fixed` of a loop that an earlier version may have begun, with the keys added since, at their defaults."""
    found = dict(begun)
    for kind, now in (("training", config), ("evaluation", judged)):
        free = {key: value for key, value in resolved(now).items() if key in FREE[kind]}
        with suppress(ValidationError):  # then what differs is named
            tree = resolved(type(now).model_validate(begun[kind] | free))
            found[kind] = {key: value for key, value in tree.items() if key not in FREE[kind]}
    return found


def _refuse_parted(config: Config, own: Mapping[str, Any], path: Path) -> None:
    """ConfigError: multipliers or certificate would be of another data set than the one that is trained on."""
    for split in ("dual", "heldout"):
        named = [s for s in paths(getattr(config.data, split)) if s != "none" and not s.endswith("%")]
        if named and split not in own:
            raise ConfigError(
                f"{path}: data replaces the recipe's data.train, but its data.{split} would still be "
                f"{', '.join(named)}, records of the other data set. Give this one's in changes "
                f"({{data: {{{split}: ...}}}}), or 10%, which takes them from the training records."
            )


def _refuse(config: Config, path: Path) -> None:
    objective = config.objective
    if objective.kind != "preference" or objective.constraint.form != "threshold" or not objective.constraint.enforce:
        raise ConfigError(
            f"{path}: objective.kind is {objective.kind}, objective.constraint.form {objective.constraint.form}, "
            f"enforce {str(objective.constraint.enforce).lower()}. A loop moves tolerances of single losses, so it "
            "needs a preference run of form threshold that enforces them."
        )
    if not config.dual_records:
        raise ConfigError(
            f"{path}: data.dual is none: what a round reached is read from records on which it does not train, and the "
            "certificate's are to be looked at once. Give data.dual."
        )
