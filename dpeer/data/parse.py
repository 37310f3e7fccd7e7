"""One row to one record: PersonaKnob columns or the general form, with every fault of the row."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from unicodedata import normalize

from dpeer.data.cells import Invalid as Invalid
from dpeer.data.cells import blank as blank
from dpeer.data.cells import kind as _kind
from dpeer.data.cells import text as _text
from dpeer.data.faults import Fault, excerpt
from dpeer.data.order import edges
from dpeer.data.parts import PARTS, parts, tools
from dpeer.data.read import Row
from dpeer.data.schema import Message, Record, Response

LONGEST_NAMES = 1_000
REJECT = "reject_"
MESSAGES = re.compile(
    r"""\s*(array\()?\[\s*\{\s*["']((role|content)["']\s*:|from["']\s*:\s*["']\w+["']\s*,.*["']value["']\s*:"""
    r"""|value["']\s*:.*["']from["']\s*:\s*["']\w+["'])""",
    re.DOTALL,
)
"""How the text of messages begins; {from, value} is told from other objects with these keys by both."""
ROLES = ("system", "user", "assistant", "tool")

SIDES = ("golden", "responses", "chosen", "rejected")
PERSONA_KNOB = "PersonaKnob columns"
GENERAL = "general form"


def native(columns: Collection[str]) -> bool:
    """Whether they are those of one of the two forms."""
    responses = "responses" in columns or "golden" in columns or any(c.startswith(REJECT) for c in columns)
    return "mask" in columns and responses


def form(columns: Mapping[str, object]) -> str:
    """Which of the two forms a row has. Raises Invalid when it has neither or both."""
    persona_knob = "golden" in columns or any(c.startswith(REJECT) for c in columns)
    general = "responses" in columns
    if persona_knob and general:
        raise Invalid("responses", f"mixed forms: `responses` beside golden / {REJECT}X columns; keep one form")
    if not persona_knob and not general:
        unknown = [c for c in columns if c not in SIDES]
        near = [c for side in SIDES if side not in columns for c in get_close_matches(side, unknown, 1, 0.75)]
        hint = f"; is {near[0]!r} misspelt?" if near else ""
        raise Invalid(
            "",
            f"columns {excerpt(', '.join(columns), 100)} are neither PersonaKnob's (mask, prompt, golden, {REJECT}X) "
            f"nor the general form's (prompt, mask, responses) nor a known layout's{hint}. Say what they are: "
            f"--map prompt=COLUMN --map golden=BETTER --map reject=WORSE (in a recipe: data.map)",
        )
    return GENERAL if general else PERSONA_KNOB


def record(row: Row) -> Record | Fault:
    """The row's record, its mask in the order given; or the first fault of the row."""
    try:
        kind = form(row.fields)
        mask = mask_in(row.fields)
        prompt = _prompt(_field(row.fields, "prompt"))
        responses = _general(row.fields, mask) if kind == GENERAL else _persona_knob(row.fields, mask)
        if all(r.fails for r in responses):
            raise Invalid("responses", "no golden response; one response must have fails []")
        parsed = Record(prompt, mask, responses, row.source, _weight(row.fields), _tools(row.fields))
        if not edges(parsed):
            raise Invalid(
                "responses" if kind == GENERAL else f"{REJECT}X",
                "no two responses differ by exactly one failed dimension, so the record states no preference; "
                "fill in a reject for an active dimension or remove the row",
            )
        return parsed
    except Invalid as invalid:
        return Fault(row.where, row.column(invalid.column), invalid.message)


def mask_in(fields: Mapping[str, object]) -> tuple[str, ...]:
    """The active dimensions of a row, in the order given. Raises Invalid."""
    try:
        value = _field(fields, "mask")
    except Invalid as missing:
        raise Invalid(
            "mask", f"{missing.message}; or say what the columns are by --map KEY=COLUMN (in a recipe: data.map)"
        ) from None
    mask = _names(value, "mask")
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
    responses = [_response(_field(fields, "golden"), "golden", ())]
    for dimension in known:
        column = columns[dimension]
        value = fields[column]
        if blank(value):
            continue
        if dimension not in mask:
            raise Invalid(
                column,
                f"{dimension!r} is not in the mask {list(mask)}, so the cell must be empty; got {excerpt(value)}",
            )
        responses.append(_response(value, column, (dimension,)))
    return tuple(responses)


def _general(fields: Mapping[str, object], mask: tuple[str, ...]) -> tuple[Response, ...]:
    values = fields["responses"]
    if not isinstance(values, list):
        raise Invalid("responses", f"must be a list of {{text, fails}} (JSONL or Parquet), got {_kind(values)}")
    responses = []
    for k, value in enumerate(values):
        column = f"responses[{k}]"
        if not isinstance(value, dict) or "fails" not in value or not value.keys() & {"text", "tool_calls"}:
            raise Invalid(column, f"must be an object with text and fails, got {excerpt(value)}")
        fails = _names(value["fails"], f"{column}.fails")
        if outside := [d for d in fails if d not in mask]:
            raise Invalid(f"{column}.fails", f"{outside[0]!r} is not in the mask {list(mask)}")
        text = value.get("text")
        beside = {k: value[k] for k in PARTS["assistant"] if not blank(value.get(k))}
        if beside:
            text = {"text": text, **beside}
        responses.append(_response(text, f"{column}.text", fails))
    return tuple(responses)


def _weight(fields: Mapping[str, object]) -> float:
    """How often a record is drawn in training, relative to 1, which it is where it is missing."""
    value = fields.get("weight")
    if blank(value):
        return 1.0
    try:
        weight = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 < weight < math.inf:
        raise Invalid("weight", f"must be a finite number above 0, got {excerpt(value)}; leave a record out by its row")
    return weight


def _tools(fields: Mapping[str, object]) -> str:
    try:
        return tools(fields.get("tools"))
    except Invalid as invalid:
        hint = "; where the column says something else, leave it out: --map tools=none (in a recipe: data.map.tools)"
        raise Invalid(invalid.column, invalid.message + hint) from None


def _prompt(value: object) -> tuple[Message, ...]:
    if isinstance(value, str):
        value = messages_in(value, "prompt")
    if not isinstance(value, list):
        return (Message("user", _text(value, "prompt")),)
    messages = []
    for k, item in enumerate(value):
        column = f"prompt[{k}]"
        present = {n: v for n, v in item.items() if v is not None} if isinstance(item, dict) else {}
        role = present.get("role")
        more = PARTS.get(role, ()) if isinstance(role, str) else ()
        silent = "tool_calls" in more and not blank(present.get("tool_calls")) and blank(present.get("content"))
        if not {"role"} <= present.keys() <= {"role", "content", *more} or not (silent or "content" in present):
            beside = f" and, of {role}, {', '.join(more)}" if more else ""
            raise Invalid(column, f"must be an object with role and content{beside or ' only'}, got {excerpt(item)}")
        if role not in ROLES:
            raise Invalid(f"{column}.role", f"{excerpt(role)} is not one of {', '.join(ROLES)}")
        if role == "system" and k > 0:
            raise Invalid(f"{column}.role", "a system message must be the first message")
        content = "" if silent else _text(present["content"], f"{column}.content")
        messages.append(Message(role, content, parts(role, present, column)))
    if not messages or messages[-1].role not in ("user", "tool"):
        last = messages[-1].role if messages else "nothing"
        raise Invalid(
            "prompt", f"must end with a user message (or a tool's) that the responses answer; it ends with {last}"
        )
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
    raise Invalid(
        column,
        f"begins like the JSON text of messages, but is none: {excerpt(text)}; write it anew by json.dumps, from lists "
        "and not from arrays",
    )


def spoken(text: str, column: str) -> list[dict[str, object]] | None:
    """The messages whose text this is; None for any other text, JSON included. Invalid as `messages_in`."""
    value = messages_in(text, column)
    return value if isinstance(value, list) and value and all(map(is_message, value)) else None


def is_message(value: object) -> bool:
    return isinstance(value, dict) and any(pair <= value.keys() for pair in ({"role", "content"}, {"from", "value"}))


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


def _response(value: object, column: str, fails: Iterable[str]) -> Response:
    """From a text, or an object of text, a thought and calls of tools."""
    extra, silent = "", False
    if isinstance(value, dict):
        if unknown := [k for k in value if k not in ("text", *PARTS["assistant"])]:
            raise Invalid(column, f"may hold text, reasoning and tool_calls, not {excerpt(unknown[0])}")
        extra = parts("assistant", value, column.removesuffix(".text"))
        silent = not blank(value.get("tool_calls")) and blank(value.get("text"))
        value = value.get("text")
    text = "" if silent else _text(value, column)
    if text and spoken(text, column):
        raise Invalid(
            column, f"holds messages and not the text of one response: {excerpt(text)}; give its content alone"
        )
    return Response(text, frozenset(fails), extra)
