"""Answers that were made elsewhere, as rows of the responses table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dpeer.data.faults import Fault, data_error, excerpt
from dpeer.data.parse import Invalid
from dpeer.data.read import Row, rows
from dpeer.eval.questions.prompting import visible
from dpeer.eval.store.columns import column_value, empty, identifier, prompt_text
from dpeer.eval.store.parts import content_id
from dpeer.eval.store.schema import RESPONSES


def read_responses(path: Path) -> pd.DataFrame:
    """A responses table from any file with the columns model, prompt and response; the others are optional.

    Raises DataError that names file, row and column.
    """
    given, faults = rows(path)
    made: list[dict[str, Any]] = []
    prompts: dict[str, tuple[str, str]] = {}
    counted: Counter[tuple[str, str]] = Counter()
    for row in given:
        try:
            answer = _response(row, counted)
            prompt, where = prompts.setdefault(answer["item"], (answer["prompt"], row.where))
            if prompt != answer["prompt"]:
                raise Invalid("item", f"{answer['item']!r} has another prompt than in {where}; an item is one prompt")
        except Invalid as invalid:
            faults.append(Fault(row.where, invalid.column, invalid.message))
            continue
        made.append(answer)
    if faults:
        raise data_error(str(path), faults)
    return pd.DataFrame(made).reindex(columns=RESPONSES.names)


def _response(row: Row, counted: Counter[tuple[str, str]]) -> dict[str, Any]:
    model = identifier(column_value(row, "model"), "model")
    prompt = visible(prompt_text(column_value(row, "prompt"), "prompt"))
    response, status = column_value(row, "response"), row.fields.get("status")
    if status in ("engine_error", "truncated") and empty(response):  # a table that `dpeer generate` wrote
        response = None
    elif not isinstance(response, str):
        raise Invalid("response", f"must be text (it may be empty), got {excerpt(response)}")
    text = None if response is None else visible(response)
    item = row.fields.get("item")
    item = content_id(prompt=prompt)[:16] if empty(item) else identifier(item, "item")
    sample = _sample(row.fields.get("sample"), counted[model, item])
    counted[model, item] += 1
    key = {"model": model, "item": item, "sample": sample, "prompt": prompt, "response": text}
    return key | {
        RESPONSES.names[0]: content_id(**key),
        "family": _optional(row.fields, "family"),
        "model_hash": _optional(row.fields, "model_hash"),
        "tokens": 0,
        "status": status if status in ("engine_error", "truncated") else "ok",
        "error": None,
    }


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
