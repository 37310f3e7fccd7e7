"""Ratings made elsewhere, by people or programs, as rows of the ratings table."""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pandas as pd
import pyarrow as pa

from dpeer.data.faults import Fault, data_error, excerpt
from dpeer.data.parse import Invalid
from dpeer.data.read import Row
from dpeer.errors import ConfigError, DataError
from dpeer.eval.elsewhere.labels import Labels, Scale, judge_labels
from dpeer.eval.elsewhere.mapping import (
    DEFAULTS,
    JUDGE,
    OPTIONAL,
    OTHER,
    OTHERS,
    REQUIRED,
    MappingError,
    Plan,
    own_names,
    plan,
    present,
    refuse_pairs,
    suggestion,
    tidy,
)
from dpeer.eval.elsewhere.sheets import stream
from dpeer.eval.elsewhere.verdicts import outcomes
from dpeer.eval.irt.encode import HUMAN
from dpeer.eval.irt.types import Ints
from dpeer.eval.irt.weaknesses import names_of
from dpeer.eval.questions.prompting import visible
from dpeer.eval.store.columns import column_value, empty
from dpeer.eval.store.parts import content_id
from dpeer.eval.store.schema import OUTCOMES, PLACES, RATINGS
from dpeer.eval.store.scores import MANY, pasted

SAMPLE = 500
"""Rows by which a mapping is checked and suggested."""
CHUNK = 50_000
"""Ratings that are held as Python objects at once."""
MOST_FAULTS = 10_000
EMPTY = "empty"
"""What stands in `error` where there is no label."""
REMEMBERED = 1 << 14
"""Names and ids that are not worked out again: most of them stand in many rows."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a table of ratings is read.

    mapping: their column -> ours. Ours are model, item, judge (required), dimension, criterion, sample, response,
    response_id (of a response that `dpeer generate` made: ratings of it by other judges are then of the same response),
    rationale, model_family, judge_family, and either `score` (one rating per row) or, with several scores in a row,
    `score:DIMENSION` or `score:DIMENSION/CRITERION` (a column per dimension), or `judge:NAME` or
    `judge:NAME/DIMENSION` (a column per rater, where an empty cell is no rating). A comparison of two models has
    other_model and winner in place of a score (`verdicts.outcomes` lists the forms), and if you like other_response,
    other_response_id and other_model_family; model is the one that stood first. Default: each column that has one of
    our names holds just that.
    labels: label -> score, for all dimensions or per dimension; without it labels must be whole numbers, or with
    half_points multiples of a half, which are doubled. missing: labels that mean no score.
    constants: values of ours that no column holds. humans: judges who are people. families: model or judge -> family,
    where no column holds it. keep_copies: rows that are identical in every column are ratings of their own.
    """

    mapping: Mapping[str, str] | None = None
    labels: Labels | Mapping[str, Labels] | None = None
    constants: Mapping[str, str] | None = None
    humans: Collection[str] = ()
    families: Mapping[str, str] | None = None
    half_points: bool = False
    missing: Collection[str] = ()
    keep_copies: bool = False


def import_ratings(
    path: str | Path,
    mapping: Mapping[str, str] | None = None,
    labels: Labels | Mapping[str, Labels] | None = None,
    **more: Any,
) -> pd.DataFrame:
    """Ratings of a CSV (any usual delimiter), Excel, JSON, JSONL or Parquet file as a table with the columns of
    `store.schema.RATINGS`, mode `import`. `more` holds the other fields of `Reading`, which explains them all.

    Every rating becomes a row: an unknown or empty label has the status `unparsed` and the label in `error`; one that
    resembles a known label is warned of. Rows alike in all but score and texts are repeats, numbered in file order;
    where all repeats are copies of whole rows, in one block as in a sheet pasted twice, they are left out with a
    warning. Names are composed (NFC), without blanks at their ends.

    Raises DataError that names file, row and column, and ConfigError for a mapping that cannot work: a MappingError
    holds the options of a command that can, where the columns leave no doubt.
    """
    return ratings_table(stream(Path(path)), Reading(mapping, labels, **more), str(path))


def ratings_from(
    table: pd.DataFrame | Iterable[Mapping[str, object]],
    mapping: Mapping[str, str] | None = None,
    labels: Labels | Mapping[str, Labels] | None = None,
    **more: Any,
) -> pd.DataFrame:
    """The same for ratings in memory: a frame, or rows as mappings, checked as a file is."""
    frame = table if isinstance(table, pd.DataFrame) else pd.DataFrame([dict(row) for row in table])
    if frame.empty:
        raise DataError("ratings: the table holds no rows; one row per rating is needed")
    frame = frame.rename(columns=str).astype(object)
    records = frame.where(frame.notna(), None).to_dict("records")
    given = [Row(f"ratings:{k}", f"row {k}", fields) for k, fields in enumerate(records, 1)]
    return ratings_table(given, Reading(mapping, labels, **more))


def ratings_table(given: Iterable[Row], how: Reading, source: str = "ratings") -> pd.DataFrame:
    """The same for rows that were read already, or are being read."""
    rows = iter(given)
    sample = list(islice(rows, SAMPLE))
    constants = {ours: tidy(value) for ours, value in (how.constants or {}).items()}
    planned = _plan(how, sample, constants)
    scale = Scale(how.labels, how.half_points, how.missing)
    table, marks = _read(chain(sample, rows), planned, constants, scale, source)
    if planned.compared and not scale.labelled:
        table = _decided(table, scale, f"{source}, column {next(iter(planned.scores))}")
    judge_labels(table, scale, source)
    table = _without_copies(table, marks, how.keep_copies, source)
    return with_families(_with_ids(table), how.humans, how.families, source)[RATINGS.names]


def _plan(how: Reading, sample: list[Row], constants: Mapping[str, str]) -> Plan:
    header = list(sample[0].fields) if sample else []
    mapping = own_names(header) if how.mapping is None else present(how.mapping, header)
    planned = None
    try:
        planned = plan(mapping, constants)
        refuse_pairs(planned, sample, constants)
        if sample and (absent := [name for name in mapping if not any(name in row.fields for row in sample)]):
            raise MappingError(f"there is no column {absent[0]!r}; the table has {excerpt(', '.join(header), 200)}")
        return planned
    except MappingError as error:
        options = error.options if how.labels or error.final else suggestion(sample, constants)
        if not options and planned is not None and not error.final:
            return planned  # the faults name the rows
        raise MappingError(error.problem, options, error.final) from None


def _read(
    rows: Iterable[Row], planned: Plan, constants: Mapping[str, str], scale: Scale, source: str
) -> tuple[pd.DataFrame, Ints]:
    """All ratings, and a mark per rating that copies of a row share; few rows at a time are Python objects."""
    faults: list[Fault] = []
    batch: list[dict[str, Any]] = []
    tables: list[pa.Table] = []
    marks = array("q")
    for row in rows:
        before = len(batch)
        try:
            batch += _ratings(row, planned, constants, scale)
        except Invalid as invalid:
            faults.append(Fault(row.where, invalid.column, invalid.message))
            if len(faults) == MOST_FAULTS:
                break
        marks.extend([hash(repr(row.fields))] * (len(batch) - before))
        if len(batch) >= CHUNK:
            tables.append(pa.Table.from_pylist(batch, schema=RATINGS))
            batch = []
    if faults:
        raise data_error(source, faults)
    if not (table := pa.concat_tables([*tables, pa.Table.from_pylist(batch, schema=RATINGS)])):
        raise DataError(f"{source}: holds no ratings: every cell of the columns with scores is empty")
    tables.clear()
    return table.to_pandas(split_blocks=True, self_destruct=True), np.frombuffer(marks, dtype=np.int64)


# Rows to ratings


def _ratings(row: Row, planned: Plan, constants: Mapping[str, str], scale: Scale) -> Iterator[dict[str, Any]]:
    columns = planned.columns
    names = {**DEFAULTS, **constants} | {ours: _name(row, columns[ours]) for ours in _NAMES if ours in columns}
    texts = {ours: _text(row, columns[ours]) for ours in OPTIONAL if ours in columns and ours not in _NAMES}
    response, sample = texts.get("response"), names["sample"]
    if not sample.isdecimal() or len(sample) > 9:
        raise Invalid(columns.get("sample", "sample"), f"must be a whole number from 0 up, got {excerpt(sample)}")
    response_id = names.get("response_id") or _response_id(names["model"], names["item"], int(sample), response)
    other = _other(row, columns, constants, names, int(sample)) if planned.compared else {}
    for column, said in planned.scores.items():
        label = _label(column_value(row, column))
        if not label and JUDGE in said:
            continue  # a rater who has not seen this response
        who = names | said
        score = None if scale.absent(label) else scale.score(label, who["dimension"], column)
        if other:
            score = _outcome(label, score, scale, column)
        yield {
            **other,
            "response_id": response_id,
            **{ours: who[ours] for ours in REQUIRED},
            **{ours: constants.get(ours) or texts.get(ours) for ours in ("model_family", "judge_family")},
            "sample": int(sample),
            "dimension": who["dimension"],
            "criterion": who["criterion"],
            "mode": "import",
            "status": "unparsed" if score is None else "ok",
            "score": score,
            "error": (label or EMPTY) if score is None else None,
            "rationale": texts.get("rationale"),
            "response_length": None if response is None else len(response),
        }


_NAMES = (*REQUIRED, *DEFAULTS, "response_id")


def _other(
    row: Row, columns: Mapping[str, str], constants: Mapping[str, str], names: Mapping[str, str], sample: int
) -> dict[str, Any]:
    """What a row says of the response that the model's was compared with, which stood second."""
    said = {ours: _text(row, columns[ours]) for ours in OTHERS if ours in columns}
    model = constants.get(OTHER) or _name(row, columns[OTHER])
    if model == names["model"]:
        raise Invalid(
            columns.get(OTHER, OTHER), f"compares {excerpt(model)} with itself; a comparison is of two models"
        )
    response = said.get("other_response")
    return {
        OTHER: model,
        "other_response_id": said.get("other_response_id") or _response_id(model, names["item"], sample, response),
        "other_sample": sample,
        "other_model_family": constants.get("other_model_family") or said.get("other_model_family"),
        "other_response_length": None if response is None else len(response),
        "order": PLACES[0],
    }


def _outcome(label: str, score: int | None, scale: Scale, column: str) -> int | None:
    """Who won, by the labels given; without them the whole column decides, see `_decided`."""
    if not scale.labelled:
        return None
    if score is not None and score not in OUTCOMES:
        told = ", ".join(map(str, OUTCOMES))
        raise Invalid(column, f"label {excerpt(label)} is mapped to {score}; the outcomes of a comparison are {told}")
    return score


@lru_cache(maxsize=REMEMBERED)
def _response_id(model: str, item: str, sample: int, response: str | None) -> str:
    return content_id(model=model, item=item, sample=sample, response=response)


def _name(row: Row, column: str) -> str:
    name = _label(column_value(row, column))
    if not name or not name.isprintable():
        raise Invalid(column, f"a name or id is needed, got {excerpt(row.fields[column])}")
    return name


def _text(row: Row, column: str) -> str | None:
    """A text, by which a response is known too: one form of Unicode, and no blanks at its end."""
    value = column_value(row, column)
    return normalize("NFC", visible(value)).rstrip() if isinstance(value, str) else _label(value) or None


def _label(value: object) -> str:
    """What a field says, as text; whole floats, which data frames make of whole numbers, without their fraction."""
    if empty(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _clean(str(value))


@lru_cache(maxsize=REMEMBERED)
def _clean(text: str) -> str:
    return tidy(visible(text))


# The whole table


def _decided(table: pd.DataFrame, scale: Scale, where: str) -> pd.DataFrame:
    """With who won, where no labels were given, by the words and numbers that are about."""
    labels = ["" if label == EMPTY or scale.absent(label) else label for label in table["error"]]
    won = outcomes(list(zip(labels, table["model"], table[OTHER], strict=True)), where)
    score = pd.Series(won, index=table.index, dtype=float)
    ok = score.notna()
    error = table["error"].astype(object).where(~ok, None)
    return table.assign(score=score, status=table["status"].mask(ok, "ok"), error=error)


def _without_copies(table: pd.DataFrame, marks: Ints, keep: bool, source: str) -> pd.DataFrame:
    """Without rows that copy an earlier one in every column, where that means that a sheet was pasted twice."""
    ok = (table["status"] == "ok").to_numpy()
    repeat = table.duplicated(list(_RATED)).to_numpy()
    whole = table[list(_RATED)].assign(mark=marks)
    copy, rows = whole.duplicated().to_numpy(), whole.groupby(list(whole), dropna=False, sort=False).ngroup().to_numpy()
    if pasted(rows[ok], repeat[ok]) and not keep:
        warnings.warn(
            f"{source}: {copy.sum():,} of {len(table):,} ratings stand in rows that are identical in every column to "
            "an earlier one, as where a sheet is pasted twice: they were left out, as no second ratings. If they are, "
            "keep them with --keep-copies",
            stacklevel=4,
        )
        return table[~copy].reset_index(drop=True)
    same = table.duplicated([*_RATED, "score"]).to_numpy() & ok
    if same.any() and (copy[ok].any() or same.sum() == repeat[ok].sum() >= MANY):
        warnings.warn(
            f"{source}: {same.sum():,} of {repeat[ok].sum():,} repeats have a score that the judge has given before to "
            f"the same response, {(copy & ok).sum():,} of them in rows that are identical in every column. Each counts "
            "as a rating of its own: are they?",
            stacklevel=4,
        )
    return table


_RATED = ("judge", "response_id", "dimension", "criterion", "other_response_id")


def _with_ids(table: pd.DataFrame) -> pd.DataFrame:
    """Number the repeats of each rating and give every row its content-addressed id."""
    repeat = table.groupby([table[name] for name in _RATED], sort=False, dropna=False).cumcount().astype("int32")
    rated = table[list(_RATED)].assign(repeat=repeat)
    ids = [_ids(rated.iloc[at : at + CHUNK]) for at in range(0, len(rated), CHUNK)]
    return table.assign(repeat=repeat, rating_id=pd.concat(ids).array)


def _ids(rated: pd.DataFrame) -> pd.Series:
    keys = zip(rated["repeat"].tolist(), *(rated[name].tolist() for name in _RATED), strict=True)
    said = ((again, {n: v for n, v in zip(_RATED, names, strict=True) if v is not None}) for again, *names in keys)
    return pd.Series([content_id(mode="import", repeat=again, **parts) for again, parts in said], dtype="str")


def with_families(
    table: pd.DataFrame, humans: Collection[str], families: Mapping[str, str] | None, source: str
) -> pd.DataFrame:
    """With the families of models and judges that rows do not name; people are a family. ConfigError: no such judge."""
    judges, humans = list(dict.fromkeys(table["judge"])), [tidy(name) for name in humans]
    if absent := [name for name in humans if name not in judges]:
        raise ConfigError(f"humans: {absent[0]!r} is no judge of {source}; its judges are {names_of(judges)}")
    families = dict.fromkeys(humans, HUMAN) | {tidy(name): kin for name, kin in (families or {}).items()}
    compared = OTHER in table and table[OTHER].notna().any()
    for who in ("model", "judge", OTHER) if compared else ("model", "judge"):
        kin = table.get(f"{who}_family", pd.Series(None, index=table.index, dtype=object))
        kin = kin.where(kin.notna(), table[who].map(families))
        table[f"{who}_family"] = kin.astype(object).where(kin.notna(), None).str.lower()  # "Qwen" and "qwen" are one
    return table
