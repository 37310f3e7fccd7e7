"""What judges, never the model under test, are told about one item: a reference answer, own criteria, a language."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from dpeer.data.cells import blank
from dpeer.data.faults import excerpt
from dpeer.data.parse import Invalid
from dpeer.data.read import Row
from dpeer.eval.questions.config import Prompts
from dpeer.eval.store.columns import encodable

EVERY = ""
"""Key of criteria that hold for every dimension."""


@dataclass(frozen=True, slots=True)
class Brief:
    """rubric: (dimension, criteria) pairs, the dimension EVERY for text that holds for all. where: file and row.
    columns: how the file names reference, rubric and language."""

    reference: str = ""
    rubric: tuple[tuple[str, str], ...] = ()
    language: str = ""
    where: str = field(default="", compare=False)
    columns: tuple[str, str, str] = field(default=("reference", "rubric", "language"), compare=False)

    def criteria(self, dimension: str) -> str:
        """The item's own criteria in a dimension; "" for none."""
        own = dict(self.rubric)
        return own.get(dimension, own.get(EVERY, ""))


def brief_of(row: Row, prompts: Prompts) -> Brief | None:
    """What a row brings in the columns that `prompts` names; None for nothing. Raises Invalid with the column."""
    columns = (prompts.reference or "", prompts.rubric or "", prompts.language or "")
    reference, rubric, language = (None if blank(row.fields.get(name)) else row.fields[name] for name in columns)
    if reference is None and rubric is None and language is None:
        return None
    return Brief(
        "" if reference is None else _text(reference, columns[0]),
        () if rubric is None else _criteria(rubric, columns[1]),
        "" if language is None else _text(language, columns[2]).strip(),
        row.where,
        columns,
    )


def _criteria(value: object, column: str) -> tuple[tuple[str, str], ...]:
    """Text for all dimensions, or an object dimension -> text, also as its JSON."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise Invalid(
                column, f"begins like a JSON object of dimensions and criteria, but is none ({error}): {excerpt(value)}"
            ) from None
    if not isinstance(value, Mapping):
        return ((EVERY, _text(value, column)),)
    own = {str(name): text for name, text in value.items() if not blank(text)}  # Parquet fills absent keys with null
    if not own:
        raise Invalid(column, f"names no criteria: {excerpt(value)}; give text, or an object dimension -> text")
    return tuple(sorted((name, _text(text, f"{column}.{name}")) for name, text in own.items()))


def _text(value: object, column: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Invalid(column, f"must be text, or empty for none, got {excerpt(value)}")
    return encodable(value, column)
