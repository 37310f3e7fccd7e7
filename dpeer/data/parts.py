"""What a message holds beside its text: a thought, calls of tools, and to which call a tool answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dpeer.data.cells import Invalid, blank, kind, text
from dpeer.data.faults import excerpt

THOUGHT = ("reasoning", "reasoning_content", "thinking")
"""Names of a thought in files and in chat templates."""
PARTS: dict[object, tuple[str, ...]] = {"assistant": (*THOUGHT, "tool_calls"), "tool": ("tool_call_id", "name")}
"""By role."""


def parts(role: object, item: Mapping[str, object], column: str) -> str:
    """The parts of a message as JSON of `reasoning`, `tool_calls`, `tool_call_id`, `name`; "" where it has none.

    Calls become {type, id, function: {name, arguments}}, arguments an object. Invalid: a part that is none.
    """
    found: dict[str, Any] = {}
    thoughts = {text(item[k], f"{column}.{k}") for k in THOUGHT if role == "assistant" and not blank(item.get(k))}
    if len(thoughts) > 1:
        raise Invalid(column, f"holds two different thoughts, under {' and '.join(k for k in THOUGHT if k in item)}")
    if thoughts:
        found["reasoning"] = thoughts.pop()
    if role == "assistant" and (calls := _listed(item.get("tool_calls"), f"{column}.tool_calls")):
        found["tool_calls"] = [_call(call, f"{column}.tool_calls[{k}]") for k, call in enumerate(calls)]
    for key in PARTS["tool"] if role == "tool" else ():
        if not blank(item.get(key)):
            found[key] = text(item[key], f"{column}.{key}")
    return _written(found) if found else ""


def tools(value: object) -> str:
    """Schemas of functions, given as a list or its JSON, as the JSON of a list; "" for none."""
    schemas = _listed(value, "tools")
    for k, schema in enumerate(schemas):
        if not isinstance(schema, dict) or not _name(schema.get("function", schema)):
            raise Invalid(
                f"tools[{k}]",
                "must be the schema of a function, {type: function, function: {name, description, parameters}}, got "
                f"{excerpt(schema)}",
            )
    return _written([s if "function" in s else {"type": "function", "function": s} for s in schemas]) if schemas else ""


def names(schemas: list[dict[str, Any]]) -> list[str]:
    """Of tools or of calls."""
    return [str(s["function"]["name"]) for s in schemas]


def _call(call: object, column: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not _name(function):
        raise Invalid(column, f"must be a call, {{function: {{name, arguments}}}}, got {excerpt(call)}")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, dict):
        raise Invalid(f"{column}.arguments", f"must be an object or its JSON, got {excerpt(function['arguments'])}")
    known = {"id": call["id"]} if not blank(call.get("id")) else {}
    return {"type": "function", **known, "function": {"name": function["name"], "arguments": arguments}}


def _name(function: object) -> bool:
    return isinstance(function, dict) and isinstance(function.get("name"), str) and bool(function["name"].strip())


def _listed(value: object, column: str) -> list[Any]:
    """The list, or that of its JSON, without the nulls that tables write for keys that other rows have."""
    if blank(value):
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Invalid(column, f"must be a list or its JSON, got the text {excerpt(value)}") from None
    if not isinstance(value, list):
        raise Invalid(column, f"must be a list, got {kind(value)}")
    return [_compact(item) for item in value]


def _compact(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _compact(v) for k, v in value.items() if v is not None}
    return [_compact(v) for v in value] if isinstance(value, list) else value


def _written(value: object) -> str:
    written = json.dumps(value, ensure_ascii=False)
    return text(written, "tools")
