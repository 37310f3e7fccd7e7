"""Single cells: which are empty, and which are text that can be trained."""

from __future__ import annotations

from dpeer.data.faults import excerpt

LONGEST_TEXT = 1_000_000
"""Characters; far beyond any context window, so a longer cell is a broken file."""
MISSING_MARKS = ("nan", "NaN", "<NA>")


class Invalid(Exception):
    """A fault in one column of the row at hand."""

    def __init__(self, column: str, message: str) -> None:
        super().__init__(message)
        self.column = column
        self.message = message


def blank(value: object) -> bool:
    """Empty cell, blank text, null, or the float NaN that data frames write for a missing text."""
    return value is None or (isinstance(value, str) and not value.strip()) or value != value


def silent(response: object) -> bool:
    """Whether it says nothing: as text, or as {text, tool_calls}."""
    if isinstance(response, dict):
        return blank(response.get("text")) and not response.get("tool_calls")
    return blank(response)


def text(value: object, column: str) -> str:
    """The text of a cell. Invalid: it is empty, no text, or holds what no file of texts holds."""
    if blank(value):
        raise Invalid(column, f"is empty ({excerpt(value)}); text is needed")
    if not isinstance(value, str):
        raise Invalid(column, f"must be text, got {kind(value)}")
    if value in MISSING_MARKS:
        raise Invalid(column, f"{value!r} marks a missing value; leave the cell empty or write the text")
    if len(value) > LONGEST_TEXT:
        raise Invalid(column, f"has {len(value):,} characters, more than {LONGEST_TEXT:,}: {excerpt(value)}")
    if "\0" in value:
        raise Invalid(column, f"holds a NUL character: {excerpt(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Invalid(column, f"holds half a surrogate pair at character {error.start}: {excerpt(value)}") from None
    return value


def kind(value: object) -> str:
    return f"{type(value).__name__} {excerpt(value)}"
