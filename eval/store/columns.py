"""Columns of a user's table, read strictly: a fault names the column, and nothing is guessed."""

from __future__ import annotations

import difflib

from dpeer.data.faults import excerpt
from dpeer.data.parse import Invalid
from dpeer.data.read import Row


def column_value(row: Row, column: str, advice: str = "") -> object:
    """The row's value in a column that must be there; `advice` says what else could be done."""
    if column in row.fields:
        return row.fields[column]
    near = difflib.get_close_matches(column, row.fields, 1)
    hint = f" (is {near[0]!r} meant?)" if near else ""
    raise Invalid(
        column, f"is missing; the row has {excerpt(', '.join(row.fields), 100)}{hint}{advice and f'; {advice}'}"
    )


def identifier(value: object, column: str) -> str:
    """A name or an id: text or a whole number."""
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise Invalid(column, f"must be text or a whole number, got {excerpt(value)}")
    return encodable(str(value).strip(), column)


def encodable(text: str, column: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Invalid(column, f"holds half a surrogate pair at character {error.start}: {excerpt(text)}") from None
    return text


def empty(value: object) -> bool:
    """Whether a field holds nothing: null, or the NaN that data frames write for it."""
    return value is None or value != value
