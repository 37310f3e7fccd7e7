"""Recipes in and out: YAML plus `--set` overrides -> one frozen `Config`, and back to the resolved YAML of a run."""

from __future__ import annotations

import copy
import difflib
import os
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args
from unicodedata import normalize

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from dpeer.config import Config, Section
from dpeer.errors import ConfigError
from dpeer.yaml_dialect import Dumper, parse

Tree = dict[str, Any]
Root = TypeVar("Root", bound=Section)

_ALTERNATIVES = {"training.steps": "training.epochs", "training.epochs": "training.steps"}
"""Keys of which exactly one is given: that of a later layer (a recipe that extends, --set) replaces the other."""
_SHOWN_FAULTS = 8
_HOME = re.compile(r"~[\w.-]*(/|$)")
_ELEMENT = re.compile(r"\.\d+(?=\.|$)")  # the number of a list's element in a dotted key


def load_config(
    path: Path | str,
    overrides: Sequence[str] = (),
    changes: Tree | None = None,
    values: Tree | None = None,
    shipped: Path | None = None,
) -> Config:
    """The config of a training recipe; see `load_section`."""
    return load_section(Config, path, overrides, changes, values, shipped)


def load_section(
    root: type[Root],
    path: Path | str,
    overrides: Sequence[str] = (),
    changes: Tree | None = None,
    values: Tree | None = None,
    shipped: Path | None = None,
) -> Root:
    """The config tree of a recipe file; each override is `a.b.c=value` with the value as YAML, the last one wins.

    A recipe may start from another one with `extends: other.yaml` (relative to its own folder, else a recipe of the
    folder `shipped`); mappings are merged.
    Before the overrides come `changes`, merged like a recipe that extends this one, and `values` by dotted key.
    Raises ConfigError that lists every fault: dotted key, what was given, what is allowed, nearest known key.
    """
    path = Path(path)
    tree = copy.deepcopy(_merge(_read_recipe(path, root, shipped), changes or {}))
    _apply(tree, [(dotted, copy.deepcopy(value), dotted, _excerpt(value)) for dotted, value in (values or {}).items()])
    _apply(tree, [_setting(override) for override in overrides])
    tree = _with_homes(_composed_names(tree))
    try:
        config = root.model_validate(tree)
        faults = [*_misread_booleans(tree, root), *_unknown_names(config)]
    except ValidationError as error:
        faults = [*_explain(error, tree, root), *_misread_booleans(tree, root)]
    if not faults:
        return config
    said = [_setting(override)[0] for override in overrides]
    faults = [f"--set {fault}" if _said_by(fault, said) else fault for fault in faults]
    if len(faults) == 1 and faults[0].startswith("--set "):
        raise ConfigError(faults[0])
    shown = [f"  {fault}" for fault in faults[:_SHOWN_FAULTS]]
    if len(faults) > _SHOWN_FAULTS:
        shown.append(f"  ... and {len(faults) - _SHOWN_FAULTS} more")
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    given = f"{path} and --set" if any(fault.startswith("--set ") for fault in faults) else str(path)
    raise ConfigError("\n".join([f"{given}: {count} in the config", *shown]))


def parsed_section(root: type[Root], values: Tree, settings: Sequence[str], where: str) -> Root:
    """A section from values and from key=value settings, the value as YAML. ConfigError: a fault, named by `where`."""
    tree = copy.deepcopy(values)
    for setting in settings:
        dotted, _, text = setting.partition("=")
        _put(tree, dotted.strip(), parse(text, f"{where} {dotted}"), f"{where} {dotted}", text)
    try:
        return root.model_validate(_with_homes(tree))
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {line}" for line in _explain(error, tree, root))) from None


def setting_tree(overrides: Sequence[str]) -> Tree:
    """What overrides say, as a recipe says it."""
    tree: Tree = {}
    _apply(tree, [_setting(override) for override in overrides])
    return tree


def known_names() -> dict[str, tuple[str, ...]]:
    """Config key -> names that are registered for it; in the config tree itself they are plain text."""
    from dpeer.objective.controllers import CONTROLLERS
    from dpeer.objective.forms import FORMS

    return {"objective.constraint.form": FORMS.names(), "objective.dual.controller": CONTROLLERS.names()}


def _unknown_names(config: Section) -> Iterator[str]:
    if not isinstance(config, Config):
        return
    from dpeer.objective.controllers import CONTROLLERS
    from dpeer.objective.forms import FORMS

    constraint, dual = config.objective.constraint, config.objective.dual
    try:
        FORMS[constraint.form](constraint.slack, constraint.options)
    except ConfigError as error:
        yield f"objective.constraint: {error}"
    try:
        CONTROLLERS[dual.controller](dual)
    except ConfigError as error:
        yield f"objective.dual: {error}"


def resolved(config: Section) -> Tree:
    """The whole config as JSON-safe builtins; an infinite tolerance is the string "inf", which loads back as inf."""
    return cast(Tree, _json_safe(config.model_dump(mode="json")))


def resolved_yaml(config: Section) -> str:
    """The whole config, defaults included, as YAML; loading it gives an equal config."""
    return yaml.dump(resolved(config), Dumper=Dumper, sort_keys=False)


# Reading


def _read_recipe(path: Path, root: type[Section], shipped: Path | None, children: tuple[Path, ...] = ()) -> Tree:
    if path.resolve() in children:
        raise ConfigError(f"{path}: `extends` goes in a circle; remove it from one of the recipes")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save the recipe as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; give the path of a recipe file") from None
    tree = parse(text, str(path))
    if not isinstance(tree, dict):
        given = "an empty file" if tree is None else f"{type(tree).__name__} {_excerpt(tree)}"
        raise ConfigError(f"{path}: a recipe is a mapping with the keys {_names(root)}; given: {given}")
    if "extends" not in tree:
        return tree
    base = tree.pop("extends")
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends: {_excerpt(base)} given; must be the path of another recipe")
    source = path.parent / os.path.expanduser(base)
    if shipped and Path(base).name == base and not source.is_file() and (shipped / f"{Path(base).stem}.yaml").is_file():
        source = shipped / f"{Path(base).stem}.yaml"
    return _merge(_read_recipe(source, root, shipped, (*children, path.resolve())), tree)


BY_DIMENSION = ("objective.primary", "objective.constraint.tolerance", "objective.certificate.tolerance")
"""Maps over the data's dimensions: a later layer replaces them whole, as it may have other dimensions."""


def _merge(base: Tree, changes: Tree, prefix: str = "") -> Tree:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict) and f"{prefix}{key}" not in BY_DIMENSION
        merged[key] = _merge(base[key], value, f"{prefix}{key}.") if both else value
        other = _ALTERNATIVES.get(f"{prefix}{key}", "").rpartition(".")[2]
        if value is not None and other not in changes:
            merged.pop(other, None)
    return merged


def _with_homes(value: Any) -> Any:
    """Every text that begins with ~/ or ~name/ as the path that it means. ConfigError: nobody's home is known."""
    if isinstance(value, dict):
        return {key: _with_homes(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_with_homes(v) for v in value]
    if not (isinstance(value, str) and _HOME.match(value)):
        return value
    if (expanded := os.path.expanduser(value)) == value:
        raise ConfigError(f"{_excerpt(value)}: there is no home folder of that name; give the whole path")
    return expanded


def _composed_names(tree: Tree) -> Tree:
    """Dimension names in one form of Unicode, as those of the data are."""
    composed = copy.deepcopy(tree)
    for dotted in BY_DIMENSION:
        section: Any = composed
        for key in dotted.split("."):
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict):
            names = {normalize("NFC", k) if isinstance(k, str) else k: v for k, v in section.items()}
            section.clear()
            section.update(names)
    return composed


def _apply(tree: Tree, layer: Sequence[tuple[str, Any, str, str]]) -> None:
    """Set each dotted key to its value; the last two members are for the error, see `_put`."""
    for setting in layer:
        _put(tree, *setting)
    given = {dotted for dotted, value, _, _ in layer if value is not None}
    for dotted in given:
        other = _ALTERNATIVES.get(dotted)
        if other and other not in given:
            section, _, key = other.rpartition(".")
            tree[section].pop(key, None)


def _setting(override: str) -> tuple[str, Any, str, str]:
    dotted, equals, text = override.partition("=")
    if not equals or not all(dotted.strip().split(".")):
        raise ConfigError(f"--set {_excerpt(override)}: write it as section.key=value, e.g. training.steps=100")
    return dotted.strip(), parse(text, f"--set {dotted}"), f"--set {dotted}", text


def _put(tree: Tree, dotted: str, value: Any, where: str, text: str) -> None:
    """Set the value under a dotted key, building missing sections; `where` and `text` (the value) are for the error."""
    keys = dotted.split(".")
    for depth, key in enumerate(keys[:-1], start=1):
        if tree.get(key) is None:
            tree[key] = {}
        if not isinstance(tree[key], dict):
            parent = ".".join(keys[:depth])
            raise ConfigError(
                f"{where}: {parent} is {_excerpt(tree[key])} here, which has no keys inside; "
                f"set it as a whole: '{parent}={{{'.'.join(keys[depth:])}: {text}}}'"
            )
        tree = tree[key]
    tree[keys[-1]] = value


# Explaining


def _section(annotation: Any) -> type[Section] | None:
    """The section class that a field holds, if any (`Lora` of `Lora | None`)."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _section(inner))), None)


def _fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field
        if inner := _section(field.annotation):
            yield from _fields(inner, f"{prefix}{name}.")


def _names(section: type[Section]) -> str:
    return ", ".join(section.model_fields)


def _explain(error: ValidationError, tree: Tree, root: type[Section]) -> Iterator[str]:
    """One line per faulty key; the faults of a union ("a number" or "a mapping") are joined."""
    # Unknown keys first: a misspelt key is also why another one is missing.
    details = sorted(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    located = [(_dotted(e["loc"], tree), e) for e in details]
    known = dict(_fields(root))
    for dotted in dict.fromkeys(key for key, _ in located):
        faults = [e for key, e in located if key == dotted]
        # An inner fault ("tolerance.A is negative") says more than "tolerance is not a number" of the same union.
        if any(key.startswith(f"{dotted}.") for key, _ in located) and len(faults[0]["loc"]) > dotted.count(".") + 1:
            continue
        yield _fault_line(dotted, faults, known, root)


def _said_by(fault: str, keys: Sequence[str]) -> bool:
    """Whether the key of a fault is one of these or lies inside one."""
    dotted = fault.partition(":")[0]
    return any(dotted == key or dotted.startswith(f"{key}.") for key in keys)


def _fault_line(dotted: str, faults: list[ErrorDetails], known: Mapping[str, FieldInfo], root: type[Section]) -> str:
    first = faults[0]
    given = "nothing" if first["input"] is None else _excerpt(first["input"])
    field = known.get(_ELEMENT.sub("", dotted))
    purpose = field.description if field else None
    about = f" ({purpose.rstrip('.')})" if purpose else ""
    match first["type"]:
        case "extra_forbidden":
            return f"{dotted}: unknown key{_hint(dotted, known)}"
        case "missing":
            return f"{dotted}: required, but not given{about}"
        case "value_error":
            where = f"{dotted}: " if dotted else ""
            return f"{where}{first['msg'].removeprefix('Value error, ')}"
        case "model_type":
            section = _section(field.annotation) if field else root
            return f"{dotted}: {given} given; must be a section with keys among {_names(section or root)}"
    allowed = " or ".join(dict.fromkeys(_allowed(e) for e in faults))
    choices = re.findall(r"'([^']*)'", " ".join(str(e.get("ctx", {}).get("expected", "")) for e in faults))
    nearest = difflib.get_close_matches(str(first["input"]), choices, 1)
    meant = f"; did you mean '{nearest[0]}'?" if nearest else ""
    return f"{dotted}: {given} given; must be {allowed}{meant}{about}"


def _allowed(fault: ErrorDetails) -> str:
    """What pydantic's message asks for, in a recipe writer's words."""
    message = re.sub(r"^\w+ should (be |match )?", "", fault["msg"]).partition(", unable to parse")[0]
    words = {
        "a valid dictionary": "a mapping",
        "a valid tuple": "a list",
        "a valid string": "text (quote it if it looks like a number)",
        "Input is not a valid path for <class 'pathlib.Path'>": "a path",
    }
    return words.get(message, message.replace("pattern ", "text that matches "))


def _dotted(loc: tuple[int | str, ...], tree: Any) -> str:
    """The user's key path: pydantic's location less the names of union members."""
    keys: list[str] = []
    for part in loc:
        in_list = isinstance(tree, list) and isinstance(part, int) and part < len(tree)
        if in_list or (isinstance(tree, dict) and part in tree):
            tree = tree[part]
        elif not (isinstance(tree, dict) and re.fullmatch(r"[a-z_]+", str(part))):
            continue  # the name of a union member; a missing key looks like a field name
        keys.append(str(part))
    return ".".join(keys)


def _hint(dotted: str, known: Mapping[str, FieldInfo]) -> str:
    parent, _, name = dotted.rpartition(".")
    plain = _ELEMENT.sub("", parent)
    siblings = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == plain]
    if near := difflib.get_close_matches(name, siblings, 1):
        return f"; did you mean {parent}.{near[0]}?" if parent else f"; did you mean {near[0]}?"
    elsewhere = {key.rpartition(".")[2]: key for key in known}
    if near := difflib.get_close_matches(name, elsewhere, 1):
        return f"; did you mean {elsewhere[near[0]]}?"
    return f"; known here: {', '.join(siblings)}" if siblings else ""


def _misread_booleans(tree: Any, section: type[Section], prefix: str = "") -> Iterator[str]:
    """true / false where a number is meant: pydantic would read them as 1 and 0."""
    for name, field in section.model_fields.items():
        value = tree.get(name) if isinstance(tree, dict) else None
        if inner := _section(field.annotation):
            inside = enumerate(value) if isinstance(value, list) else [("", value)]
            for at, element in inside:
                yield from _misread_booleans(element, inner, f"{prefix}{name}.{at}.".replace("..", "."))
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        free = inner or field.annotation is str or {bool, Any} & {field.annotation, *get_args(field.annotation)}
        if not free and any(isinstance(v, bool) for v in values):
            yield f"{prefix}{name}: {_excerpt(value)} given; must not be true or false ({field.description})"


def _excerpt(value: Any) -> str:
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    short.maxlevel = 3
    return short.repr(value)


def _json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_safe(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_json_safe(v) for v in value]
    return "inf" if value == float("inf") else value
