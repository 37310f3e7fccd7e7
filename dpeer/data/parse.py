"""One row to one record: PersonaKnob columns or the general form, with every fault of the row."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from unicodedata import normalize

from dpeer.data.faults import Fault, excerpt
from dpeer.data.order import edges
from dpeer.data.read import Row
from dpeer.data.schema import Message, Record, Response

LONGEST_TEXT = 1_000_000
"""Characters; far beyond any context window, so a longer cell is a broken file."""
LONGEST_NAMES = 1_000
REJECT = "reject_"
MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](role|content)["']\s*:""")
ROLES = ("system", "user", "assistant")
MISSING_MARKS = ("nan", "NaN", "<NA>")

PERSONA_KNOB = "PersonaKnob columns"
GENERAL = "general form"


class Invalid(Exception):
    """A fault in one column of the row at hand."""

    def __init__(self, column: str, message: str) -> None:
        super().__init__(message)
        self.column = column
        self.message = message


def native(columns: Collection[str]) -> bool:
    """Whether they are those of one of the two forms."""
    return "responses" in columns or "golden" in columns or any(c.startswith(REJECT) for c in columns)


def form(columns: Mapping[str, object]) -> str:
    """Which of the two forms a row has. Raises Invalid when it has neither or both."""
    persona_knob = "golden" in columns or any(c.startswith(REJECT) for c in columns)
    general = "responses" in columns
    if persona_knob and general:
        raise Invalid("responses", f"mixed forms: `responses` beside golden / {REJECT}X columns; keep one form")
    if not persona_knob and not general:
        near = get_close_matches("golden", columns) + get_close_matches("responses", columns)
        hint = f"; is {near[0]!r} misspelt?" if near else ""
        raise Invalid(
            "",
            f"columns {excerpt(', '.join(columns), 100)} are neither PersonaKnob's (mask, prompt, golden, {REJECT}X) "
            f"nor the general form's (prompt, mask, responses) nor a known layout{hint}; say what they are by data.map",
        )
    return GENERAL if general else PERSONA_KNOB


def record(row: Row) -> Record | Fault:
    """The row's record, its mask in the order given; or the first fault of the row."""
    try:
        kind = form(row.fields)
        mask = _mask(row.fields)
        prompt = _prompt(_field(row.fields, "prompt"))
        responses = _general(row.fields, mask) if kind == GENERAL else _persona_knob(row.fields, mask)
        if all(r.fails for r in responses):
            raise Invalid("responses", "no golden response; one response must have fails []")
        parsed = Record(prompt, mask, responses, row.source, _weight(row.fields))
        if not edges(parsed):
            raise Invalid(
                "responses" if kind == GENERAL else f"{REJECT}X",
                "no two responses differ by exactly one failed dimension, so the record states no preference; "
                "fill in a reject for an active dimension or remove the row",
            )
        return parsed
    except Invalid as invalid:
        return Fault(row.where, row.column(invalid.column), invalid.message)


def _mask(fields: Mapping[str, object]) -> tuple[str, ...]:
    mask = _names(_field(fields, "mask"), "mask")
    if not mask:
        raise Invalid("mask", "is empty; at least one active dimension is needed")
    return mask


def _persona_knob(fields: Mapping[str, object], mask: tuple[str, ...]) -> tuple[Response, ...]:
    columns = {normalize("NFC", c.removeprefix(REJECT)): c for c in fields if c.startswith(REJECT)}
    known = list(columns)
    if unknown := [d for d in mask if d not in known]:
        raise Invalid(
            "mask",
            f"unknown dimension {unknown[0]!r}: there is no column {REJECT}{unknown[0]} (known: {', '.join(known)})",
        )
    responses = [Response(_text(_field(fields, "golden"), "golden"), frozenset())]
    for dimension in known:
        column = columns[dimension]
        value = fields[column]
        if _absent(value):
            continue
        if dimension not in mask:
            raise Invalid(
                column,
                f"{dimension!r} is not in the mask {list(mask)}, so the cell must be empty; got {excerpt(value)}",
            )
        responses.append(Response(_text(value, column), frozenset({dimension})))
    return tuple(responses)


def _general(fields: Mapping[str, object], mask: tuple[str, ...]) -> tuple[Response, ...]:
    values = fields["responses"]
    if not isinstance(values, list):
        raise Invalid("responses", f"must be a list of {{text, fails}} (JSONL or Parquet), got {_kind(values)}")
    responses = []
    for k, value in enumerate(values):
        column = f"responses[{k}]"
        if not isinstance(value, dict) or not {"text", "fails"} <= value.keys():
            raise Invalid(column, f"must be an object with text and fails, got {excerpt(value)}")
        text = _text(value["text"], f"{column}.text")
        fails = _names(value["fails"], f"{column}.fails")
        if outside := [d for d in fails if d not in mask]:
            raise Invalid(f"{column}.fails", f"{outside[0]!r} is not in the mask {list(mask)}")
        responses.append(Response(text, frozenset(fails)))
    return tuple(responses)


def _weight(fields: Mapping[str, object]) -> float:
    """How often a record is drawn in training, relative to 1."""
    value = fields.get("weight", 1.0)
    if _absent(value):
        raise Invalid("weight", "is empty; give a number above 0, such as 1")
    try:
        weight = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 < weight < math.inf:
        raise Invalid("weight", f"must be a finite number above 0, got {excerpt(value)}; leave a record out by its row")
    return weight


def _prompt(value: object) -> tuple[Message, ...]:
    if isinstance(value, str):
        value = messages_in(value, "prompt")
    if not isinstance(value, list):
        return (Message("user", _text(value, "prompt")),)
    messages = []
    for k, item in enumerate(value):
        column = f"prompt[{k}]"
        present = {n: v for n, v in item.items() if v is not None} if isinstance(item, dict) else {}
        if present.keys() != {"role", "content"}:
            raise Invalid(column, f"must be an object with role and content only, got {excerpt(item)}")
        if present["role"] not in ROLES:
            raise Invalid(f"{column}.role", f"{excerpt(present['role'])} is not one of {', '.join(ROLES)}")
        if present["role"] == "system" and k > 0:
            raise Invalid(f"{column}.role", "a system message must be the first message")
        messages.append(Message(present["role"], _text(present["content"], f"{column}.content")))
    if not messages or messages[-1].role != "user":
        last = messages[-1].role if messages else "nothing"
        raise Invalid("prompt", f"must end with a user message that the responses answer; it ends with {last}")
    return tuple(messages)


def messages_in(text: str, column: str) -> object:
    """The messages that a text is the JSON or the Python literal of, as data frames write them; else the text itself.
    Invalid: it begins as messages do, and cannot be read."""
    if not MESSAGES.match(text):
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text.strip())
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
        return value
    raise Invalid(column, f"begins like the JSON text of messages, but is none: {excerpt(text)}; mend it")


def _names(value: object, column: str) -> tuple[str, ...]:
    """A list of dimension names, or its text as JSON or as a Python literal."""
    if isinstance(value, str):
        value = _literal(value, column)
    if not isinstance(value, list):
        raise Invalid(column, f'must be a list of dimension names such as ["A", "T"], got {_kind(value)}')
    names: list[str] = []
    for name in value:
        if not isinstance(name, str) or not name.strip() or name != name.strip() or not name.isprintable():
            raise Invalid(column, f"a dimension name must be plain text, got {excerpt(name)} in {excerpt(value)}")
        name = normalize("NFC", name)
        if name in names:
            raise Invalid(column, f"names {name!r} twice: {excerpt(value)}")
        names.append(name)
    return tuple(names)


def _literal(text: str, column: str) -> object:
    problem = f'must be a list of dimension names such as ["A", "T"], got the text {excerpt(text)}'
    if len(text) > LONGEST_NAMES:
        raise Invalid(column, problem)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise Invalid(column, problem) from None


def _field(fields: Mapping[str, object], column: str) -> object:
    if column not in fields:
        near = get_close_matches(column, fields) or [c for c in fields if c.strip().lower() == column]
        hint = f"; is {near[0]!r} misspelt?" if near else ""
        raise Invalid(column, f"is missing; the row has {excerpt(', '.join(map(str, fields)), 100)}{hint}")
    return fields[column]


def _absent(value: object) -> bool:
    """Empty cell, blank text, null, or the float NaN that data frames write for a missing text."""
    return value is None or (isinstance(value, str) and not value.strip()) or value != value


def _text(value: object, column: str) -> str:
    if _absent(value):
        raise Invalid(column, f"is empty ({excerpt(value)}); text is needed")
    if not isinstance(value, str):
        raise Invalid(column, f"must be text, got {_kind(value)}")
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


def _kind(value: object) -> str:
    return f"{type(value).__name__} {excerpt(value)}"
