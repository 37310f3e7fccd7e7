"""Rubrics: what a judge is asked, one dimension and criterion per call, on an anchored ordinal scale."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dpeer.config_io import _parse as parse_yaml
from dpeer.data.faults import excerpt
from dpeer.errors import ConfigError

SHIPPED = Path(__file__).parent / "rubrics"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
CATEGORIES = range(2, 11)


@dataclass(frozen=True, slots=True)
class Criterion:
    """One question; `anchors` describe what each score looks like (all scores of the scale, or none)."""

    question: str
    anchors: dict[int, str]


@dataclass(frozen=True, slots=True)
class Dimension:
    title: str
    description: str
    criteria: dict[str, Criterion]


@dataclass(frozen=True, slots=True)
class Rubric:
    """`scale`: the possible scores, ascending, consecutive. `terse`: shortest prompts, for tiny judges trained on them.

    White space inside a text and the order of keys carry no meaning: they change neither the prompts nor the hash.
    """

    name: str
    version: int
    role: str
    scale: tuple[int, ...]
    dimensions: dict[str, Dimension]
    terse: bool = False
    hash: str = field(init=False)
    """First 16 hex digits of the sha256 over all content."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "hash", _hash(self))

    def criterion(self, dimension: str, criterion: str) -> Criterion:
        """Raises ConfigError that lists what there is."""
        found = self.dimensions.get(dimension)
        if found is None:
            raise ConfigError(f"rubric {self.name} has no dimension {dimension!r}; it has {_listed(self.dimensions)}")
        if criterion not in found.criteria:
            raise ConfigError(
                f"rubric {self.name}: dimension {dimension} has no criterion {criterion!r}; "
                f"it has {_listed(found.criteria)}"
            )
        return found.criteria[criterion]


def load_rubric(name_or_path: str | Path) -> Rubric:
    """A shipped rubric by its name, or a YAML file.

    Raises ConfigError that names file, key, what was given and what is allowed.
    """
    path = _locate(name_or_path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save the rubric as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; give the path of a rubric file") from None
    try:
        return _rubric(parse_yaml(text, str(path)))
    except _Invalid as fault:
        raise ConfigError(f"{path}: {fault}") from None


def _locate(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    shipped = sorted(p.stem for p in SHIPPED.glob("*.yaml"))
    if str(name_or_path) in shipped:
        return SHIPPED / f"{name_or_path}.yaml"
    near = difflib.get_close_matches(str(name_or_path), shipped, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"rubric {str(name_or_path)!r}: neither a shipped rubric ({_listed(shipped)}) nor a .yaml file{hint}"
    )


class _Invalid(Exception):
    """A fault at a key; the text starts with the dotted key."""


def _rubric(tree: object) -> Rubric:
    top = _section(tree, "", required=("name", "version", "scale", "dimensions"), optional=("role", "terse"))
    scale = _scale(top["scale"])
    dimensions = {k: _dimension(v, f"dimensions.{k}", scale) for k, v in _named(top["dimensions"], "dimensions")}
    return Rubric(
        name=_name(top["name"], "name"),
        version=_version(top["version"]),
        role=_text(top.get("role") or "", "role", empty=True),
        scale=scale,
        dimensions=dimensions,
        terse=_flag(top.get("terse", False), "terse"),
    )


def _dimension(tree: object, key: str, scale: tuple[int, ...]) -> Dimension:
    section = _section(tree, key, required=("title", "criteria"), optional=("description",))
    criteria = {
        k: _criterion(v, f"{key}.criteria.{k}", scale) for k, v in _named(section["criteria"], f"{key}.criteria")
    }
    return Dimension(
        _text(section["title"], f"{key}.title"),
        _text(section.get("description") or "", f"{key}.description", empty=True),
        criteria,
    )


def _criterion(tree: object, key: str, scale: tuple[int, ...]) -> Criterion:
    section = _section(tree, key, required=("question",), optional=("anchors",))
    anchors = section.get("anchors") or {}
    if not isinstance(anchors, dict):
        raise _Invalid(f"{key}.anchors: {excerpt(anchors)} given; must map each score to its description")
    given = sorted(k for k in anchors if type(k) is int)
    if anchors and (tuple(given) != scale or len(given) != len(anchors)):
        raise _Invalid(
            f"{key}.anchors: {_listed(anchors)} given; must describe every score of the scale "
            f"({_listed(scale)}) and nothing else, or be left out"
        )
    texts = {score: _text(anchors[score], f"{key}.anchors.{score}") for score in scale if anchors}
    return Criterion(_text(section["question"], f"{key}.question"), texts)


def _section(tree: object, key: str, required: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, object]:
    where = f"{key}: " if key else ""
    known = (*required, *optional)
    if not isinstance(tree, dict):
        given = "nothing" if tree is None else excerpt(tree)
        raise _Invalid(f"{where}{given} given; must be a mapping with the keys {_listed(known)}")
    for name in tree:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {_listed(known)}"
            raise _Invalid(f"{where}unknown key {name!r}; {hint}")
    if missing := [name for name in required if name not in tree]:
        raise _Invalid(f"{where}required key {missing[0]} is missing")
    return tree


def _named(tree: object, key: str) -> list[tuple[str, object]]:
    if not isinstance(tree, dict) or not tree:
        raise _Invalid(f"{key}: {excerpt(tree)} given; must map at least one name to its content")
    return [(_name(name, key), value) for name, value in tree.items()]


def _name(value: object, key: str) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise _Invalid(
            f"{key}: {excerpt(value)} given; a name is text of letters, digits, '.', '_' and '-' "
            "that starts with a letter or digit (quote it if YAML reads it as something else)"
        )
    return value


def _text(value: object, key: str, empty: bool = False) -> str:
    if not isinstance(value, str) or not (empty or value.strip()):
        raise _Invalid(f"{key}: {excerpt(value)} given; must be {'text' if empty else 'non-empty text'}")
    if bad := next((c for c in value if not c.isprintable() and not c.isspace()), None):
        raise _Invalid(f"{key}: holds the unprintable character {bad!r}; remove it")
    return " ".join(value.split())


def _version(value: object) -> int:
    if type(value) is not int or value < 1:
        raise _Invalid(f"version: {excerpt(value)} given; must be a whole number from 1 up")
    return value


def _flag(value: object, key: str) -> bool:
    if not isinstance(value, bool):
        raise _Invalid(f"{key}: {excerpt(value)} given; must be true or false")
    return value


def _scale(value: object) -> tuple[int, ...]:
    scores = value if isinstance(value, list) else []
    whole = bool(scores) and all(type(score) is int for score in scores)
    if not whole or scores != list(range(scores[0], scores[0] + len(scores))) or scores[0] < 0:
        raise _Invalid(f"scale: {excerpt(value)} given; must list consecutive whole numbers from 0 up, e.g. [1, 2, 3]")
    if len(scores) not in CATEGORIES:
        raise _Invalid(f"scale: {len(scores)} scores given; must be {CATEGORIES[0]} to {CATEGORIES[-1]}")
    return tuple(scores)


def _hash(rubric: Rubric) -> str:
    content = {
        "name": rubric.name,
        "version": rubric.version,
        "role": rubric.role,
        "scale": rubric.scale,
        "terse": rubric.terse,
        "dimensions": {
            name: [d.title, d.description, {k: [c.question, c.anchors] for k, c in d.criteria.items()}]
            for name, d in rubric.dimensions.items()
        },
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names))
