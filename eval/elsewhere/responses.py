"""Answers that were made elsewhere, as rows of the responses table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dpeer.data.faults import Fault, data_error, excerpt
from dpeer.data.parse import Invalid, messages_in
from dpeer.data.read import Row, rows
from dpeer.data.schema import Message
from dpeer.eval.questions.briefs import Brief, brief_of
from dpeer.eval.questions.config import Prompts
from dpeer.eval.questions.conversations import conversation, messages_of, prompt_text, so_far, turns, written
from dpeer.eval.questions.prompting import visible
from dpeer.eval.store.columns import column_value, empty, identifier
from dpeer.eval.store.parts import content_id
from dpeer.eval.store.schema import RESPONSES

DEFAULTS = Prompts()


def read_responses(path: Path, columns: Prompts = DEFAULTS) -> pd.DataFrame:
    """A responses table from any file with the columns model, prompt and response; the others are optional. `columns`
    names those that hold something for judges only, which stands in `brief`.

    Raises DataError that names file, row and column.
    """
    given, faults = rows(path)
    made: list[dict[str, Any]] = []
    prompts: dict[str, tuple[str, Brief | None, str]] = {}
    counted: Counter[tuple[str, str]] = Counter()
    for row in given:
        try:
            answer = _response(row, counted) | {"brief": brief_of(row, columns)}
            own = (answer["prompt"], answer["brief"], row.where)
            prompt, brief, where = prompts.setdefault(answer["item"], own)
            for what, differs in (("prompt", prompt != own[0]), ("reference, rubric or language", brief != own[1])):
                if differs:
                    item = answer["item"]
                    raise Invalid("item", f"{item!r} has another {what} than in {where}; an item is one prompt")
        except Invalid as invalid:
            faults.append(Fault(row.where, invalid.column, invalid.message))
            continue
        made.append(answer)
    if faults:
        raise data_error(str(path), faults)
    briefs = [answer.pop("brief") for answer in made]
    table = pd.DataFrame(made).reindex(columns=RESPONSES.names)
    return table.assign(brief=pd.Series(briefs, table.index, dtype=object)) if any(briefs) else table


def _response(row: Row, counted: Counter[tuple[str, str]]) -> dict[str, Any]:
    model = identifier(column_value(row, "model"), "model")
    prompt = _seen(prompt_text(column_value(row, "prompt"), "prompt"))
    response, status = column_value(row, "response"), row.fields.get("status")
    if status in ("engine_error", "truncated") and empty(response):  # a table that `dpeer generate` wrote
        response = None
    elif not isinstance(response, str):
        raise Invalid("response", f"must be text (it may be empty), got {excerpt(response)}")
    text = None if response is None else visible(response)
    said = _transcript(row, prompt, text)
    item = row.fields.get("item")
    item = content_id(prompt=prompt)[:16] if empty(item) else identifier(item, "item")
    sample = _sample(row.fields.get("sample"), counted[model, item])
    counted[model, item] += 1
    key = {"model": model, "item": item, "sample": sample, "prompt": prompt, "response": text}
    key |= {"transcript": said} if said else {}
    return key | {
        RESPONSES.names[0]: content_id(**key),
        "family": _optional(row.fields, "family"),
        "model_hash": _optional(row.fields, "model_hash"),
        "tokens": 0,
        "status": status if status in ("engine_error", "truncated") else "ok",
        "error": None,
    }


def _seen(prompt: str) -> str:
    """The prompt with nothing unprintable in its texts."""
    if not conversation(prompt):
        return visible(prompt)
    return written([Message(m.role, visible(m.content)) for m in messages_of(prompt)])


def _transcript(row: Row, prompt: str, response: str | None) -> str | None:
    """All messages of a conversation up to the response; None for a single prompt. Answers before the last must be
    told by the column of this name, as a list of messages or as its JSON."""
    if not conversation(prompt) or response is None:
        return None
    value = row.fields.get("transcript")
    if empty(value) or value == "":
        if turns(prompt) > 1:
            raise Invalid(
                "transcript",
                f"is needed: the prompt has {turns(prompt)} turns, and only the last answer is in `response`",
            )
        return written(so_far(prompt, [response]))
    told = messages_in(value, "transcript") if isinstance(value, str) else value
    listed = told if isinstance(told, list) else []
    said = [visible(str(m.get("content"))) if isinstance(m, dict) else "" for m in listed]
    places = [len(so_far(prompt, [""] * turn)) for turn in range(turns(prompt))]
    answers = [said[place] if place < len(said) else "" for place in places]
    whole = written(so_far(prompt, answers))
    if answers[-1] != response or [m.content for m in messages_of(whole)] != said:
        raise Invalid(
            "transcript",
            "must hold the messages of the prompt with the model's answers between them, and end with the response; "
            f"got {excerpt(value)}",
        )
    return whole


def _sample(value: object, default: int) -> int:
    if empty(value) or value == "":
        return default
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
    if isinstance(value, bool) or not text.isdecimal() or len(text) > 9:
        raise Invalid("sample", f"must be a whole number from 0 up, got {excerpt(value)}")
    return int(text)


def _optional(fields: Mapping[str, object], column: str) -> str | None:
    value = fields.get(column)
    return str(value).strip() or None if isinstance(value, str) else None
