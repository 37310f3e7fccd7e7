"""The YAML of recipes: safe, scalars as in YAML 1.2, no key twice."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from dpeer.errors import ConfigError


class Loader(yaml.SafeLoader):
    """Safe YAML in which a repeated key is an error, and scalars are what they look like, as in YAML 1.2: 1e-6 and 010
    are the numbers, 1:30, yes and 2026-01-31 are text. Digits may stand in groups, 1_000."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - a base declares it so

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = node.value.replace("_", "")
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"key '{key.value}' is given twice, in lines {seen[key.value]} and {line}"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen[key.value if isinstance(key, yaml.ScalarNode) else line] = line
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """The counterpart of Loader: quotes text that would be read as a number."""


_DIGITS = "[0-9]+(_[0-9]+)*"
_SCALARS = {  # in this order: what is no whole number may be another one
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (rf"[-+]?{_DIGITS}|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        rf"[-+]?(\.{_DIGITS}|{_DIGITS}(\.({_DIGITS})?)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    "merge": ("<<", ["<"]),
}
for _kind, (_pattern, _first) in _SCALARS.items():
    for _dialect in (Loader, Dumper):  # the dumper quotes what 1.1 would read otherwise, too
        _dialect.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), _first)
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)


def parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}{at}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where}: not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise ConfigError(f"{where}: not valid YAML for a recipe: nested too deeply") from None
