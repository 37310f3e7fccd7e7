"""Rows as sycophancy-eval publishes them: `prompt` (messages {type, content}), `base` and `metadata`, objects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from dpeer.data.faults import excerpt
from dpeer.data.parse import Invalid
from dpeer.data.read import Row
from dpeer.eval.questions.conversations import prompt_text
from dpeer.eval.store.columns import column_value

SOURCE = (
    "Sharma, Tong, Korbak, Duvenaud, Askell, Bowman et al. (ICLR 2024), Towards Understanding Sycophancy in Language "
    "Models; MIT licence; arXiv 2310.13548; files of huggingface.co/datasets/meg-tong/sycophancy-eval"
)
ROLES = {"human": "user", "ai": "assistant", "system": "system"}


def object_in(row: Row, column: str) -> Mapping[str, Any]:
    """A cell with an object, also as its JSON."""
    value = column_value(row, column)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, Mapping):
        raise Invalid(column, f"must be an object, got {excerpt(row.fields[column])}")
    return value


def field(given: Mapping[str, Any], column: str, name: str) -> str:
    """A text of an object."""
    value = given.get(name)
    if not isinstance(value, str) or not value.strip():
        raise Invalid(f"{column}.{name}", f"must be text, got {excerpt(value)}")
    return value


def conversation_in(row: Row) -> str:
    """`prompt` up to its last human message: how an answer should begin ("The answer is (") is left out."""
    value = column_value(row, "prompt")
    try:
        told = json.loads(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
    except ValueError:
        told = value  # a text that begins with a bracket
    if isinstance(told, str) or not isinstance(told, list):
        return prompt_text(told, "prompt")
    messages = [dict(m) if isinstance(m, Mapping) else {} for m in told]
    if wrong := next((m for m in messages if m.get("type", m.get("role")) not in {*ROLES, *ROLES.values()}), None):
        raise Invalid("prompt", f"must be messages of type human, ai or system, got {excerpt(wrong)}")
    roles = [ROLES.get(str(m.get("type", m.get("role"))), str(m.get("role"))) for m in messages]
    while roles and roles[-1] == "assistant":
        roles.pop()
    kept = zip(roles, messages, strict=False)
    return prompt_text([{"role": role, "content": m.get("content")} for role, m in kept], "prompt")


def key_of(*texts: str) -> str:
    """An id by content: rows have none."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
