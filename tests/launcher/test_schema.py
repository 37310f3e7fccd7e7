"""`dpeer config schema`: what an editor is told about recipes agrees with what the loader takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from dpeer.config import Config
from dpeer.config_io import known_names
from dpeer.launcher.cli import app
from dpeer.launcher.commands.config import Kind, file_schema, recipe_schema
from dpeer.launcher.loop.spec import LOOPS
from dpeer.launcher.recipe import BUILD, EVALUATION, RECIPES
from dpeer.launcher.sweep.spec import SWEEPS

FOLDERS = {
    Kind.training: RECIPES,
    Kind.evaluation: EVALUATION,
    Kind.sweep: SWEEPS,
    Kind.build: BUILD,
    Kind.loop: LOOPS,
}
SHIPPED = [(kind, path) for kind, folder in FOLDERS.items() for path in sorted(folder.glob("*.yaml"))]


def faults(kind: Kind, recipe: dict[str, Any]) -> list[str]:
    tree = recipe_schema(kind)
    jsonschema.Draft202012Validator.check_schema(tree)
    return [error.message for error in jsonschema.Draft202012Validator(tree).iter_errors(recipe)]


@pytest.mark.parametrize(("kind", "path"), SHIPPED, ids=lambda value: getattr(value, "stem", value))
def test_shipped_recipes_agree_with_the_schema(kind: Kind, path: Path) -> None:
    text = path.read_text()
    assert faults(kind, yaml.safe_load(text)) == []
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")


@pytest.mark.parametrize(
    ("recipe", "fault"),
    [
        ({"extends": "demo.yaml", "trainin": {}}, "'trainin' was unexpected"),
        ({"extends": "demo.yaml", "training": {"steps": 0}}, "not valid under any"),
        ({"extends": "demo.yaml", "model": {"dtype": "fp16"}}, "'fp16' is not one of"),
        ({"name": "x"}, "'model' is a required property"),
    ],
)
def test_faults_are_seen(recipe: dict[str, Any], fault: str) -> None:
    assert any(fault in message for message in faults(Kind.training, recipe)), faults(Kind.training, recipe)


def field(tree: dict[str, Any], dotted: str) -> dict[str, Any]:
    """A field of sections that are always there, followed by hand."""
    node = tree
    for key in dotted.split("."):
        node = node["properties"][key]
        if "$ref" in node:
            node = tree["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def test_registered_names_are_offered() -> None:
    tree = recipe_schema(Kind.training)
    for dotted, names in known_names().items():
        assert field(tree, dotted)["enum"] == list(names)
    one = file_schema(Config, {"objective.dual.controller": ("ascent", "mine")})
    assert field(one, "objective.dual.controller")["enum"] == ["ascent", "mine"]


def test_a_name_for_a_key_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"objective\.dual\.colour"):
        file_schema(Config, {"objective.dual.colour": ("red",)})


@pytest.mark.parametrize("kind", list(Kind))
def test_the_command_prints_it(kind: Kind) -> None:
    result = CliRunner().invoke(app, ["config", "schema", "--kind", kind])
    assert result.exit_code == 0 and json.loads(result.output) == recipe_schema(kind)
