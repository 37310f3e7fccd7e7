"""`dpeer config`: the form of recipes, for editors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dpeer.config import Section

app = typer.Typer(no_args_is_help=True)

Node = dict[str, Any]


class Kind(StrEnum):
    training = "training"
    evaluation = "evaluation"
    sweep = "sweep"
    build = "build"
    loop = "loop"


@app.command()
def schema(
    kind: Annotated[Kind, typer.Option(help="Which files it describes.")] = Kind.training,
) -> None:
    """Print the JSON schema of recipes: dpeer config schema > schema.json."""
    typer.echo(json.dumps(recipe_schema(kind), indent=1))


def recipe_schema(kind: Kind) -> Node:
    """JSON schema of one kind of recipe file, before overrides and with the key `extends`."""
    from dpeer.config import Config
    from dpeer.config_io import known_names

    match kind:
        case Kind.training:
            return file_schema(Config, known_names())
        case Kind.evaluation:
            from dpeer.eval.backends.registry import BACKENDS
            from dpeer.eval.config import EvalConfig

            return file_schema(EvalConfig, {"judges.backend": BACKENDS.names()})
        case Kind.build:
            from dpeer.eval.backends.registry import BACKENDS
            from dpeer.eval.build.spec import BuildSpec

            return file_schema(BuildSpec, {f"{key}.backend": BACKENDS.names() for key in ("generators", "verifiers")})
        case Kind.sweep:
            from dpeer.launcher.sweep.spec import Sweep

            return file_schema(Sweep, {})
        case Kind.loop:
            from dpeer.launcher.loop.spec import Loop

            return file_schema(Loop, {})


def file_schema(root: type[Section], names: Mapping[str, Sequence[str]]) -> Node:
    """The schema of a section as a file: what is required may also come from the recipe that it extends.

    names: dotted key -> the names that its registry knows; KeyError for a key that the section does not have.
    """
    tree: Node = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | root.model_json_schema()
    tree["properties"]["extends"] = {"type": "string", "description": "Recipe that this one starts from."}
    required = tree.get("required", [])
    for section in (tree, *tree.get("$defs", {}).values()):
        section.pop("required", None)
    tree |= {"if": {"not": {"required": ["extends"]}}, "then": {"required": required}}
    for dotted, known in names.items():
        _field(tree, dotted)["enum"] = list(known)
    return tree


def _field(tree: Node, dotted: str) -> Node:
    """The schema of the field under a dotted key, through references and optional sections."""
    node = tree
    for key in dotted.split("."):
        options = (node, *node.get("anyOf", ()), *node.get("allOf", ()), node.get("items", {}))
        sections = (tree["$defs"][o["$ref"].rpartition("/")[2]] if "$ref" in o else o for o in options)
        node = next((s["properties"][key] for s in sections if key in s.get("properties", ())), {})
        if not node:
            raise KeyError(f"{dotted}: the schema of {tree['title']} has no such key")
    return node
