"""Writes docs/api/config.md, every key of every file that dpeer reads, from their classes.

python docs/configuration.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from dpeer.config import Config
from dpeer.eval.bench.config import BenchConfig
from dpeer.eval.build.spec import BuildSpec
from dpeer.eval.config import EvalConfig
from dpeer.eval.prices import Prices
from dpeer.launcher.commands.config import Kind, file_schema, recipe_schema
from dpeer.launcher.loop.spec import Loop
from dpeer.launcher.sweep.spec import Sweep
from dpeer.section import Section

PAGE = Path(__file__).parent / "api" / "config.md"
Node = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tree:
    """One kind of file: its heading, what it is for, its config class and its JSON schema."""

    name: str
    title: str
    about: str
    root: type[Section]
    schema: Node


def trees() -> list[Tree]:
    def tree(kind: Kind, title: str, about: str, root: type[Section]) -> Tree:
        return Tree(kind, title, about, root, recipe_schema(kind))

    return [
        tree(
            Kind.training,
            "Training recipe",
            "For `dpeer train`, `plan`, `preflight`, `tolerance` and `slurm`. Forms and controllers of your own "
            "([extending](../extending/index.md)) join the names given here.",
            Config,
        ),
        tree(
            Kind.evaluation,
            "Evaluation recipe",
            "For `dpeer generate`, `judge`, `eval plan` and `data audit`: [judging](../judging.md).",
            EvalConfig,
        ),
        tree(Kind.build, "Build spec", "For `dpeer build`: [building data](../building.md).", BuildSpec),
        tree(Kind.sweep, "Sweep file", "For `dpeer sweep`: [sweeps](../sweeps.md).", Sweep),
        tree(Kind.loop, "Loop file", "For `dpeer loop`: [loops](../loop.md).", Loop),
        Tree(
            "bench",
            "Benchmark recipe",
            "For `dpeer bench`: [benchmarks](../bench.md).",
            BenchConfig,
            file_schema(BenchConfig, {}),
        ),
        Tree(
            "prices",
            "Price table",
            "The file that `prices` of the others names: [endpoints](../endpoints.md).",
            Prices,
            file_schema(Prices, {}),
        ),
    ]


INTRO = """# Configuration

Every key of every file, with type, default and meaning. `python docs/configuration.py` writes this page from the
classes that read the files; a test compares.

- A key `a.b` is `b` under `a` in YAML, and `--set a.b=VALUE` on the command line; `[]` marks an item of a list, `NAME`
  a name of your own.
- `extends: NAME-OR-PATH` starts a file from another one; keys given here replace its.
- `dpeer train RECIPE --dry-run` (`generate`, `judge` and `build` too) prints a file with all keys filled in. An unknown
  key is an error that names the nearest. `dpeer config schema --kind evaluation` writes the form for
  [editors](../install.md#editors-and-shells).
- **required**: there is no default. `null`: not set; the meaning says what happens then.

"""


def page() -> str:
    kinds = trees()
    contents = "".join(f"- [{tree.title}](#{tree.name}): {len(keys(tree))} keys\n" for tree in kinds)
    return INTRO + contents + "".join(f"\n{part}" for tree in kinds for part in _parts(tree))


def keys(tree: Tree) -> list[str]:
    """All dotted keys of a kind of file, in the order of the page."""
    return [prefix + name for prefix, section in _sections(tree) for name in section["properties"] if name != "extends"]


def _parts(tree: Tree) -> Iterator[str]:
    yield f'<a id="{tree.name}"></a>\n\n## {tree.title}\n\n{tree.about}\n'
    full = tree.root.model_json_schema()
    for prefix, section in _sections(tree):
        name = prefix.removesuffix(".")
        required = (full["$defs"][section["title"]] if name else full).get("required", ())
        heading = f'<a id="{_anchor(tree, name)}"></a>\n\n### `{name}`\n\n' if name else ""
        about = " ".join(section.get("description", "").split()) + "\n\n" if name and "description" in section else ""
        given = _given(tree, name)
        rows = [
            _row(prefix + key, field, required=key in required, default=_default(field, given.get(key)))
            + f" {_cell(_meaning(tree, field))} |\n"
            for key, field in section["properties"].items()
            if key != "extends"
        ]
        yield heading + about + "| key | type | default | meaning |\n|---|---|---|---|\n" + "".join(rows)


def _anchor(tree: Tree, name: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", f"{tree.name}-{name}".lower()).strip("-")


def _meaning(tree: Tree, field: Node) -> str:
    homes = _homes(tree)
    places = [homes[title].removesuffix(".") for title, _ in _references(field)]
    links = [f"Keys: [`{place}`](#{_anchor(tree, place)})." for place in dict.fromkeys(places)]
    return " ".join([*str(field.get("description", "")).split(), *links])


def _sections(tree: Tree) -> list[tuple[str, Node]]:
    """(prefix of its keys, schema) of the file and of each section below it, each class once, in the files' order."""
    homes = _homes(tree)
    found = [("", tree.schema)] + [(prefix, tree.schema["$defs"][title]) for title, prefix in homes.items()]
    walked = [prefix for prefix, _ in _walk(tree, "", tree.schema)]
    return sorted(found, key=lambda section: walked.index(section[0]))


def _homes(tree: Tree) -> dict[str, str]:
    """Class -> the shortest prefix at which it stands: its keys are listed there."""
    homes: dict[str, str] = {}
    for prefix, title in _walk(tree, "", tree.schema):
        if title and (title not in homes or prefix.count(".") < homes[title].count(".")):
            homes[title] = prefix
    return homes


def _walk(tree: Tree, prefix: str, section: Node, title: str = "") -> Iterator[tuple[str, str]]:
    yield prefix, title
    for key, field in section["properties"].items():
        for below, suffix in _references(field):
            yield from _walk(tree, f"{prefix}{key}{suffix}.", tree.schema["$defs"][below], below)


def _references(field: Node, suffix: str = "") -> list[tuple[str, str]]:
    """(class, what a dotted key to it has behind the field's name) of each section that a field may hold."""
    if "$ref" in field:
        return [(field["$ref"].rpartition("/")[2], suffix)]
    found = [found for option in field.get("anyOf", ()) for found in _references(option, suffix)]
    for key, mark in (("items", "[]"), ("additionalProperties", ".NAME")):
        if isinstance(inner := field.get(key), dict):
            found += _references(inner, suffix + mark)
    return found


def _given(tree: Tree, name: str) -> Node:
    """The defaults that the file has for the keys of a section, where they differ from the section's own."""
    node: Any = {key: field.get("default") for key, field in tree.schema["properties"].items()} if name else {}
    for key in name.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _default(field: Node, given: Any) -> str:
    if "$ref" in field:
        return "as there"
    value = field.get("default", {"object": {}, "array": []}.get(field.get("type", "")))
    return f"`{_yaml(value if given is None else given)}`"


def _row(key: str, field: Node, required: bool, default: str) -> str:
    return f"| `{key}` | {_cell(_type(field))} | {'**required**' if required else _cell(default)} |"


def _yaml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, str):
        return value or '""'
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _type(field: Node) -> str:
    """In words, with its bounds: `integer, at least 1, or null`."""
    if "$ref" in field:
        return "section"
    if options := field.get("anyOf"):
        return " or ".join(dict.fromkeys(_type(option) for option in options))
    if "enum" in field:
        return ", ".join(f"`{_yaml(value)}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    match field.get("type"):
        case "array":
            if many := field.get("prefixItems"):
                return f"list of {len(many)}: {', '.join(_type(item) for item in many)}"
            return f"list of {_type(field.get('items', {}))}"
        case "object":
            values = field.get("additionalProperties")
            return f"names to {_type(values)}" if isinstance(values, dict) else "names to any value"
        case "string":
            return {"path": "path", "date": "date"}.get(field.get("format", ""), "text")
        case "integer" | "number" as kind:
            return ", ".join((kind, *_bounds(field)))
        case "boolean":
            return "true, false"
        case "null":
            return "null"
        case _:
            return "any value"


def _bounds(field: Node) -> list[str]:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return [f"{words[key]} {_yaml(field[key])}" for key in words if key in field]


def _cell(text: str) -> str:
    """With bars that do not end the cell: GitHub and MkDocs read `\\|` in code differently."""
    code = re.sub(r"`([^`]*\|[^`]*)`", lambda m: f"<code>{escape(m[1])}</code>", text)
    return code.replace("|", "&#124;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
