"""Ratings made elsewhere, by people or programs, as rows of the ratings table."""

from __future__ import annotations

import difflib
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from dpeer.data.faults import Fault, data_error, excerpt
from dpeer.data.parse import Invalid
from dpeer.data.read import Row, rows
from dpeer.errors import ConfigError, DataError
from dpeer.eval.questions.prompting import visible
from dpeer.eval.store.columns import column_value, empty
from dpeer.eval.store.parts import content_id
from dpeer.eval.store.schema import RATINGS

Labels = Mapping[str, int]

REQUIRED = ("model", "item", "judge")
DEFAULTS = {"dimension": "overall", "criterion": "overall", "sample": "0"}
"""What a table may leave out, and what it means then."""
OPTIONAL = (*DEFAULTS, "response_id", "model_family", "judge_family", "response", "rationale")
SCORE = "score"
KNOWN = (*REQUIRED, *OPTIONAL, SCORE)
HUMAN = "human"
"""The family of people who rate."""
ALIKE, MANY = 0.8, 20
"""An unknown label is warned of when it resembles a known one this much (difflib), or occurs in this many rows."""
SHOWN = 5


def import_ratings(
    path: str | Path,
    mapping: Mapping[str, str],
    labels: Labels | Mapping[str, Labels] | None = None,
    *,
    constants: Mapping[str, str] | None = None,
    humans: Collection[str] = (),
    families: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Ratings of a CSV, JSONL or Parquet file as a table with the columns of `store.schema.RATINGS`, mode `import`.

    mapping: their column -> ours. Ours are model, item, judge (required), dimension, criterion, sample, response,
    response_id (of a response that `dpeer generate` made: ratings of it by other judges are then of the same response),
    rationale, model_family, judge_family, and either `score` (long form, one rating per row) or `score:DIMENSION` or
    `score:DIMENSION/CRITERION` (wide form, one column per dimension). constants: values of ours that no column holds.
    labels: label -> score, for all dimensions or per dimension; without it labels must be whole numbers.
    humans: judges who are people. families: model or judge -> family, where no column holds it.

    Every rating becomes a row: an unknown or empty label has the status `unparsed` and the label in `error`; one that
    resembles a known label is warned of. Rows alike in all but score and texts are repeats, numbered in file order.

    Raises DataError that names file, row and column, and ConfigError for a mapping that cannot work.
    """
    given, faults = rows(Path(path))
    if faults:
        raise data_error(str(path), faults)
    return ratings_table(
        given, mapping, labels, constants=constants, humans=humans, families=families, source=str(path)
    )


def ratings_from(
    table: pd.DataFrame | Iterable[Mapping[str, object]],
    mapping: Mapping[str, str] | None = None,
    labels: Labels | Mapping[str, Labels] | None = None,
    *,
    constants: Mapping[str, str] | None = None,
    humans: Collection[str] = (),
    families: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """The same for ratings in memory: a frame, or rows as mappings, checked as a file is.

    mapping: default, each column that has one of our names, `score` and `score:DIMENSION` included, holds just that.
    """
    frame = table if isinstance(table, pd.DataFrame) else pd.DataFrame([dict(row) for row in table])
    if frame.empty:
        raise DataError("ratings: the table holds no rows; one row per rating is needed")
    frame = frame.rename(columns=str).astype(object)
    records = frame.where(frame.notna(), None).to_dict("records")
    given = [Row(f"ratings:{k}", f"row {k}", fields) for k, fields in enumerate(records, 1)]
    if mapping is None:
        mapping = {name: name for name in frame.columns if name in KNOWN or name.startswith(f"{SCORE}:")}
    return ratings_table(given, mapping, labels, constants=constants, humans=humans, families=families)


def ratings_table(
    given: Sequence[Row],
    mapping: Mapping[str, str],
    labels: Labels | Mapping[str, Labels] | None = None,
    *,
    constants: Mapping[str, str] | None = None,
    humans: Collection[str] = (),
    families: Mapping[str, str] | None = None,
    source: str = "ratings",
) -> pd.DataFrame:
    """The same for rows that were read already."""
    constants, families = dict(constants or {}), dict.fromkeys(humans, HUMAN) | dict(families or {})
    columns, scores = _plan(mapping, constants)
    scale = _Scale(labels)
    faults: list[Fault] = []
    ratings: list[dict[str, Any]] = []
    for row in given:
        try:
            ratings += _ratings(row, columns, scores, constants, scale)
        except Invalid as invalid:
            faults.append(Fault(row.where, invalid.column, invalid.message))
    if faults:
        raise data_error(source, faults)
    _judge_labels(ratings, scale, source)
    _identify(ratings)
    judges = dict.fromkeys(rating["judge"] for rating in ratings)
    if absent := [name for name in humans if name not in judges]:
        raise ConfigError(f"humans: {absent[0]!r} is no judge of {source}; its judges are {', '.join(judges)}")
    for rating in ratings:
        for who in ("model", "judge"):
            kin = rating[f"{who}_family"] or families.get(rating[who])
            rating[f"{who}_family"] = kin and kin.lower()  # "Qwen" and "qwen" are one family
    return pa.Table.from_pylist(ratings, schema=RATINGS).to_pandas()


# The plan: which of their columns hold what


def _plan(
    mapping: Mapping[str, str], constants: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """Ours -> their column; and each column with scores -> (dimension, criterion), empty where the row says it."""
    columns: dict[str, str] = {}
    scores: dict[str, tuple[str, str]] = {}
    for theirs, ours in mapping.items():
        if ours == SCORE or ours.startswith(f"{SCORE}:"):
            dimension, _, criterion = ours.removeprefix(SCORE).removeprefix(":").partition("/")
            if not dimension and ours != SCORE:
                raise ConfigError(f"column {theirs!r} is mapped to {ours!r}; write score:DIMENSION")
            scores[theirs] = (dimension, criterion)
            continue
        _known(ours)
        if ours in columns:
            raise ConfigError(f"columns {columns[ours]!r} and {theirs!r} are both mapped to {ours}; keep one")
        columns[ours] = theirs
    for ours in constants:
        _known(ours)
        if ours in columns:
            raise ConfigError(f"{ours} is given as a constant and as column {columns[ours]!r}; keep one")
    if missing := [ours for ours in REQUIRED if ours not in columns and ours not in constants]:
        raise ConfigError(f"nothing is mapped to {missing[0]}; map a column to it or give it as a constant")
    _check_scores(scores, {*columns, *constants})
    return columns, scores


def _known(ours: str) -> None:
    if ours == SCORE or ours not in KNOWN:
        near = difflib.get_close_matches(ours, KNOWN, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"{ours!r} is no column of the ratings table that can be imported; known: {', '.join(KNOWN)}, "
            f"score:DIMENSION, score:DIMENSION/CRITERION{hint}"
        )


def _check_scores(scores: Mapping[str, tuple[str, str]], given: Collection[str]) -> None:
    if not scores:
        raise ConfigError(
            "nothing is mapped to score; map the column with the labels to score, or with one column per dimension "
            "each to score:DIMENSION"
        )
    wide = [dimension for dimension, _ in scores.values() if dimension]
    if 0 < len(wide) < len(scores) or (not wide and len(scores) > 1):
        raise ConfigError("map either one column to score or each of several to its own score:DIMENSION, not both")
    if len(set(scores.values())) < len(scores):
        raise ConfigError("two columns are mapped to the same score:DIMENSION; keep one, or add /CRITERION to each")
    if wide and "dimension" in given:
        raise ConfigError("dimension is given twice: by its own column or constant and by score:DIMENSION; keep one")
    if "criterion" in given and any(criterion for _, criterion in scores.values()):
        raise ConfigError("criterion is given twice: by its own column or constant and by score:DIMENSION/CRITERION")


# Rows to ratings


def _ratings(
    row: Row,
    columns: Mapping[str, str],
    scores: Mapping[str, tuple[str, str]],
    constants: Mapping[str, str],
    scale: _Scale,
) -> Iterator[dict[str, Any]]:
    names = {**DEFAULTS, **constants} | {ours: _name(row, columns[ours]) for ours in _NAMES if ours in columns}
    texts = {ours: _text(row, columns[ours]) for ours in OPTIONAL if ours in columns and ours not in _NAMES}
    response, sample = texts.get("response"), names["sample"]
    if not sample.isdecimal() or len(sample) > 9:
        raise Invalid(columns.get("sample", "sample"), f"must be a whole number from 0 up, got {excerpt(sample)}")
    for column, (dimension, criterion) in scores.items():
        dimension, criterion = dimension or names["dimension"], criterion or names["criterion"]
        label = _label(column_value(row, column))
        score = scale.score(label, dimension, column)
        yield {
            "response_id": names.get("response_id")
            or content_id(model=names["model"], item=names["item"], sample=int(sample), response=response),
            **{ours: names[ours] for ours in REQUIRED},
            **{ours: constants.get(ours) or texts.get(ours) for ours in ("model_family", "judge_family")},
            "sample": int(sample),
            "dimension": dimension,
            "criterion": criterion,
            "mode": "import",
            "status": "unparsed" if score is None else "ok",
            "score": score,
            "error": (label or "empty") if score is None else None,
            "rationale": texts.get("rationale"),
            "response_length": None if response is None else len(response),
        }


_NAMES = (*REQUIRED, *DEFAULTS, "response_id")


def _name(row: Row, column: str) -> str:
    name = _label(column_value(row, column))
    if not name or not name.isprintable():
        raise Invalid(column, f"a name or id is needed, got {excerpt(row.fields[column])}")
    return name


def _text(row: Row, column: str) -> str | None:
    value = column_value(row, column)
    return visible(value) if isinstance(value, str) else _label(value) or None


def _label(value: object) -> str:
    """What a field says, as text; whole floats, which data frames make of whole numbers, without their fraction."""
    if empty(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return visible(str(value)).strip()


# Labels


class _Scale:
    """Which score a label means."""

    def __init__(self, labels: Labels | Mapping[str, Labels] | None) -> None:
        self.by_dimension: dict[str, dict[str, int]] | None = None
        self.common: dict[str, int] | None = None
        if labels is None:
            return
        nested = {key: value for key, value in labels.items() if isinstance(value, Mapping)}
        if not nested:
            self.common = _scores(labels)
        elif len(nested) == len(labels):
            self.by_dimension = {str(d): _scores(inner) for d, inner in nested.items()}
        else:
            raise ConfigError("labels: give one mapping label -> score, or one per dimension, not a mixture")

    def known(self, dimension: str) -> dict[str, int] | None:
        """Labels of a dimension; None: any whole number."""
        return self.common if self.by_dimension is None else self.by_dimension.get(dimension, {})

    def score(self, label: str, dimension: str, column: str) -> int | None:
        if self.by_dimension is not None and dimension not in self.by_dimension:
            has = ", ".join(self.by_dimension)
            raise Invalid(column, f"there are no labels for dimension {dimension!r}; there are some for {has}")
        known = self.known(dimension)
        if known is not None:
            return known.get(label)
        number = _WHOLE.fullmatch(label)
        return int(number[1]) if number else None


_WHOLE = re.compile(r"([+-]?[0-9]{1,9})(?:\.0+)?")


def _scores(labels: Mapping[Any, Any]) -> dict[str, int]:
    if wrong := next((item for item in labels.items() if type(item[1]) is not int), None):
        raise ConfigError(f"labels: {wrong[0]!r} is mapped to {wrong[1]!r}; a score must be a whole number")
    if not labels:
        raise ConfigError("labels: the mapping is empty; give label -> score, or leave it out for whole numbers")
    return {str(label).strip(): score for label, score in labels.items()}


def _judge_labels(ratings: Sequence[Mapping[str, Any]], scale: _Scale, source: str) -> None:
    """Refuse a table without a single known label; warn of unknown ones that look like an oversight."""
    unknown = Counter((r["dimension"], r["error"]) for r in ratings if r["status"] == "unparsed")
    if unknown.total() == len(ratings):
        frequent = Counter(r["error"] for r in ratings).most_common(SHOWN)
        listed = "; ".join(f"{excerpt(label)} in {count} rows" for label, count in frequent)
        raise DataError(
            f"{source}: none of the {len(ratings)} labels means a score: {listed}. Give the scores of the labels, or "
            "map another column to score"
        )
    suspects = []
    for (dimension, label), count in unknown.most_common():
        known = scale.known(dimension) or {}
        near = _resembling(label, known)
        if near or count >= MANY:
            suspects.append(f"{excerpt(label)} in {count} rows" + (f" (like {near!r})" if near else ""))
    if suspects:
        rest = f"; and {len(suspects) - SHOWN} more" if len(suspects) > SHOWN else ""
        warnings.warn(
            f"{source}: unknown labels, kept as unparsed: {'; '.join(suspects[:SHOWN])}{rest}. If they mean a score, "
            "add them to the labels",
            stacklevel=3,
        )


def _resembling(label: str, known: Iterable[str]) -> str | None:
    folded = {k.casefold(): k for k in known}
    if len(label) > 2 * max(map(len, folded), default=0):
        return None
    near = difflib.get_close_matches(label.casefold(), folded, 1, ALIKE)
    return folded[near[0]] if near else None


def _identify(ratings: Sequence[dict[str, Any]]) -> None:
    """Number the repeats of each rating and give every row its content-addressed id."""
    seen: Counter[tuple[str, ...]] = Counter()
    for rating in ratings:
        key = {name: rating[name] for name in ("judge", "response_id", "dimension", "criterion")}
        rating["repeat"] = seen[tuple(key.values())]
        seen[tuple(key.values())] += 1
        rating["rating_id"] = content_id(mode="import", repeat=rating["repeat"], **key)
