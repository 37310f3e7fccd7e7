"""Rubrics: what a judge is asked, one dimension and criterion per call, on an anchored ordinal scale."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from dpeer.data.faults import excerpt
from dpeer.errors import ConfigError
from dpeer.eval.questions.words import ENGLISH, Words, languages, read_words, words_of
from dpeer.yaml_dialect import parse as parse_yaml

SHIPPED = Path(__file__).parent / "rubrics"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
CATEGORIES = range(2, 11)
LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z0-9]{2,8})*")


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
    language: of the texts. languages: the same rubric in others, by their codes; these have the hash of this one.
    """

    name: str
    version: int
    role: str
    scale: tuple[int, ...]
    dimensions: dict[str, Dimension]
    terse: bool = False
    language: str = "en"
    words: Words = ENGLISH
    languages: dict[str, Rubric] = field(default_factory=dict)
    hash: str = ""
    """First 16 hex digits of the sha256 over all content but that of other languages."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "hash", self.hash or _hash(self))

    def spoken(self, language: str) -> Rubric | None:
        """The rubric in a language such as de-AT: else that in de; None where there is neither."""
        for code in (language, language.partition("-")[0]):
            if code == self.language:
                return self
            if code in self.languages:
                return self.languages[code]
        return None

    def dimension(self, name: str) -> Dimension:
        """Raises ConfigError that lists what there is."""
        if name not in self.dimensions:
            raise ConfigError(f"rubric {self.name} has no dimension {name!r}; it has {_listed(self.dimensions)}")
        return self.dimensions[name]

    def criterion(self, dimension: str, criterion: str) -> Criterion:
        """Raises ConfigError that lists what there is."""
        content = self.dimension(dimension)
        if criterion not in content.criteria:
            raise ConfigError(
                f"rubric {self.name}: dimension {dimension} has no criterion {criterion!r}; "
                f"it has {_listed(content.criteria)}"
            )
        return content.criteria[criterion]


def load_rubric(name_or_path: str | Path) -> Rubric:
    """A shipped rubric by its name, or a YAML file.

    A file may say `extends: NAME` (a shipped rubric, or a YAML file beside it): it then gives its own name and version
    and whatever differs. A dimension that it names is added, or replaces that of the other as a whole; one that it maps
    to null is removed. The hash is that of the resulting rubric.

    Raises ConfigError that names file, key, what was given and what is allowed.
    """
    path = _locate(str(name_or_path))
    with _named_in_faults(path):
        return _rubric(_resolved(path))


def rubric_from(tree: object, where: str) -> Rubric:
    """A rubric from the content of a file, as `load_rubric` reads it, without `extends`; `where` names it in faults."""
    with _named_in_faults(Path(where)):
        return _rubric(tree)


@contextmanager
def _named_in_faults(path: Path) -> Iterator[None]:
    try:
        yield
    except _Invalid as fault:
        raise ConfigError(f"{path}: {fault}") from None


def _resolved(path: Path, children: tuple[Path, ...] = ()) -> object:
    """The content of a rubric file, laid over that of the rubric that it extends."""
    tree = parse_yaml(_text_of(path), str(path))
    if not isinstance(tree, dict) or "extends" not in tree:
        return tree
    changes = {key: value for key, value in tree.items() if key != "extends"}
    chain = (*children, path.resolve())
    with _named_in_faults(path):
        base = _base(tree["extends"], path)
        if base.resolve() in chain:
            circle = " -> ".join(p.name for p in (*chain[chain.index(base.resolve()) :], base))
            raise _Invalid(f"extends: goes in a circle ({circle}); remove it from one of these rubrics")
        inherited = _resolved(base, chain)
        with _named_in_faults(base):
            _rubric(inherited)  # its own faults carry its own name
        assert isinstance(inherited, dict)
        return _laid_over(inherited, changes)


def _base(given: object, path: Path) -> Path:
    if not isinstance(given, str) or not given:
        raise _Invalid(f"extends: {excerpt(given)} given; must be a shipped rubric or a .yaml file beside this one")
    try:
        base = _locate(given, path.parent)
    except ConfigError as error:
        raise _Invalid(f"extends: {error}") from None
    if not base.is_file():
        raise _Invalid(f"extends: there is no file {base}; give a shipped rubric or a .yaml file beside this one")
    return base


def _laid_over(base: dict[str, object], changes: dict[str, object]) -> dict[str, object]:
    """A rubric with changes: dimensions are added, replaced, or with null removed; other keys are replaced."""
    for key in ("name", "version"):
        if key not in changes:
            raise _Invalid(f"required key {key} is missing; a rubric that extends another has a {key} of its own")
    changed = changes.get("dimensions", {})
    if not isinstance(changed, dict):
        raise _Invalid(f"dimensions: {excerpt(changed)} given; must map names to dimensions, or to null to remove them")
    inherited = base["dimensions"]
    assert isinstance(inherited, dict)
    for name, content in changed.items():
        if content is None and name not in inherited:
            raise _Invalid(
                f"dimensions.{name}: null removes a dimension, but {base['name']} has no {name}; "
                f"it has {_listed(inherited)}"
            )
    dimensions = {name: content for name, content in {**inherited, **changed}.items() if content is not None}
    own = {key: value for key, value in base.items() if key != "languages"}  # they say what the other rubric says
    return {**own, **changes, "dimensions": dimensions}


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save the rubric as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; give the path of a rubric file") from None


def _locate(name_or_path: str, folder: Path = Path()) -> Path:
    """The file of a shipped rubric, or a path relative to `folder`."""
    path = folder / name_or_path
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    shipped = sorted(p.stem for p in SHIPPED.glob("*.yaml"))
    if name_or_path in shipped:
        return SHIPPED / f"{name_or_path}.yaml"
    near = difflib.get_close_matches(name_or_path, shipped, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"rubric {name_or_path!r}: neither a shipped rubric ({_listed(shipped)}) nor a .yaml file{hint}")


class _Invalid(Exception):
    """A fault at a key; the text starts with the dotted key."""


def _rubric(tree: object) -> Rubric:
    optional = ("role", "terse", "extends", "language", "words", "languages")
    top = _section(tree, "", required=("name", "version", "scale", "dimensions"), optional=optional)
    scale = _scale(top["scale"])
    dimensions = {k: _dimension(v, f"dimensions.{k}", scale) for k, v in _named(top["dimensions"], "dimensions")}
    language = _language(top.get("language", "en"), "language")
    rubric = Rubric(
        name=_name(top["name"], "name"),
        version=_version(top["version"]),
        role=_text(top.get("role") or "", "role", empty=True),
        scale=scale,
        dimensions=dimensions,
        terse=_flag(top.get("terse", False), "terse"),
        language=language,
        words=_words(top, language, ""),
    )
    if "languages" not in top:
        return rubric
    others = dict[str, Rubric]()
    for code, content in _named(top["languages"], "languages"):
        if code == language:
            raise _Invalid(f"languages.{code}: is the language of the rubric itself; leave it out")
        others[code] = _translation(content, rubric, _language(code, "languages"))
    return replace(rubric, languages=others)


def _translation(tree: object, rubric: Rubric, code: str) -> Rubric:
    """The rubric in another language: all of its texts, and its names, scale and hash as they are."""
    key = f"languages.{code}"
    section = _section(tree, key, required=("dimensions",), optional=("role", "words"))
    if rubric.role and not section.get("role"):
        raise _Invalid(f"{key}: required key role is missing; the rubric has one, to be said in {code} too")
    given = _named(section["dimensions"], f"{key}.dimensions")
    _refuse_other_names(f"{key}.dimensions", [name for name, _ in given], rubric.dimensions)
    dimensions = {k: _dimension(v, f"{key}.dimensions.{k}", rubric.scale) for k, v in given}
    for name, dimension in rubric.dimensions.items():
        own = dimensions[name]
        place = f"{key}.dimensions.{name}"
        _refuse_other_names(f"{place}.criteria", own.criteria, dimension.criteria)
        for criterion, content in dimension.criteria.items():
            if bool(content.anchors) != bool(own.criteria[criterion].anchors):
                raise _Invalid(f"{place}.criteria.{criterion}.anchors: must be there in every language, or in none")
    return replace(
        rubric,
        role=_text(section.get("role") or "", f"{key}.role", empty=True),
        dimensions={name: dimensions[name] for name in rubric.dimensions},
        language=code,
        words=_words(section, code, key),
    )


def _refuse_other_names(key: str, given: Iterable[str], known: Iterable[str]) -> None:
    if differing := sorted(set(given).symmetric_difference(known)):
        raise _Invalid(f"{key}: must be those of the rubric ({_listed(known)}); missing or unknown: {differing[0]}")


def _language(value: object, key: str) -> str:
    if not isinstance(value, str) or not LANGUAGE.fullmatch(value):
        raise _Invalid(f"{key}: {excerpt(value)} given; must be the code of a language, such as en, de or pt-br")
    return value


def _words(section: dict[str, object], language: str, key: str) -> Words:
    """dpeer's own words in a language: the rubric's, else the shipped ones."""
    where = f"{key}.words" if key else "words"
    if "words" in section:
        try:
            return read_words(section["words"])
        except ValueError as error:
            raise _Invalid(f"{where}: {error}") from None
    known = words_of(language)
    if known is None:
        raise _Invalid(
            f"{where}: is missing; dpeer's own sentences of a judge prompt are known in {_listed(languages())} only, "
            f"so say them in {language}: questions/words/de.yaml has all keys"
        )
    return known


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
