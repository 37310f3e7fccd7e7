"""Texts and messages as other tools write them -> messages of role and content, and what a pair of them shares."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from dpeer.config_sources import Map
from dpeer.data.faults import excerpt
from dpeer.data.parse import Invalid

Messages = list[dict[str, object]]

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
SPEAKERS |= {"model": "assistant", "assistant": "assistant", "system": "system"}
"""Names of roles, among them those of ShareGPT files."""
HUMAN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):[ ]?")
EXTRA_ID = re.compile(r"\n?<extra_id_1>(User|Assistant)\n?")


@dataclass(frozen=True, slots=True)
class Pair:
    """column: where the prompt stands."""

    prompt: object
    column: str
    golden: object
    reject: object


def conversation(value: object, turns: str | None = None) -> Messages | None:
    """The messages of a list, of one message, of their text as JSON, or of a text with marks of turns; None for a plain
    text and for anything else. Messages that are not understood stay as they are, for the parser to refuse."""
    if isinstance(value, str):
        if value.lstrip().startswith(("[{", "{")):
            messages = conversation(_json(value))
            return messages if messages and all({"role", "content"} <= m.keys() for m in messages) else None
        return _marked(value, turns) if turns else None
    if isinstance(value, dict) and _message(value) is not value:
        return [_message(value)]
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [_message(item) for item in value]
    return None


def plain(value: object, column: str) -> object:
    """A response: text, or the content of the only message."""
    messages = conversation(value)
    if messages is None:
        return value
    if len(messages) > 1 or messages[0].get("role") != "assistant":
        roles = ", ".join(str(m.get("role")) for m in messages)
        raise Invalid(column, f"must be a response, a text or one message of the assistant; got messages of {roles}")
    return messages[0].get("content")


def joined_prompt(fields: Mapping[str, object], given: Map) -> tuple[object, str]:
    """(text or messages, the column they come from)."""
    columns = (given.prompt,) if isinstance(given.prompt, str) else given.prompt or ()
    if not columns:
        raise Invalid("prompt", "is missing; name the column of the prompt by data.map.prompt")
    if columns[0] not in fields:
        raise Invalid(columns[0], f"is missing; the row has {excerpt(', '.join(map(str, fields)), 100)}")
    value = fields[columns[0]]
    if len(columns) > 1:
        value = "\n".join(str(fields[c]) for c in columns if fields.get(c) is not None and str(fields[c]).strip())
    prompt: object = conversation(value, given.turns) or value
    return _with_system(prompt, fields, given), columns[0]


def pair_of(fields: Mapping[str, object], given: Map, good: object, bad: object) -> Pair | None:
    """Prompt and both responses of a row; None where two conversations differ before their last turn.

    Each side is a response, or a conversation that ends with it; the prompt is a column, or what both begin with.
    """
    assert given.golden and given.reject
    turns = given.turns or ("human" if given.prompt is None and _both_human(good, bad) else None)
    ours, theirs = conversation(good, turns), conversation(bad, turns)
    sides = [_side(m, v, c) for m, v, c in ((ours, good, given.golden), (theirs, bad, given.reject))]
    (before, golden), (other, reject) = sides
    if before and other and _bare(before) != _bare(other):
        return None
    shared = before or other
    if given.prompt is None:
        if not shared:
            raise Invalid(
                given.golden,
                "holds no prompt, and there is no column of one: give conversations of user and assistant, or name the "
                f"column by data.map.prompt; got {excerpt(good)}",
            )
        return Pair(_with_system(shared, fields, given), given.golden, golden, reject)
    prompt, column = joined_prompt(fields, given)
    if shared and not _agrees(prompt, shared):
        raise Invalid(column, f"is not what the conversation asks; it asks {excerpt(shared[-1].get('content'))}")
    return Pair(_with_system(shared, fields, given) if shared else prompt, column, golden, reject)


def _side(messages: Messages | None, value: object, column: str) -> tuple[Messages, object]:
    """(what comes before the response, the response)."""
    if messages is None:
        return [], value
    if messages[-1].get("role") != "assistant":
        raise Invalid(column, f"must end with a message of the assistant; it ends with {excerpt(messages[-1])}")
    return messages[:-1], messages[-1].get("content")


def _message(item: dict[str, object]) -> dict[str, object]:
    """As {role, content}; anything else as it is."""
    kept = {k: v for k, v in item.items() if v is not None}
    if {"from", "value"} <= kept.keys():
        kept = {"role": kept["from"], "content": kept["value"]}
    if not {"role", "content"} <= kept.keys():
        return item
    content, role = kept["content"], kept["role"]
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        content = "".join(p["text"] for p in content)
    extra = {k: v for k, v in kept.items() if k not in ("role", "content")}
    return {"role": SPEAKERS.get(role, role) if isinstance(role, str) else role, "content": content, **extra}


def _marked(text: str, turns: str) -> Messages | None:
    mark = HUMAN if turns == "human" else EXTRA_ID
    first, *rest = mark.split(text)
    if not rest:
        return None
    messages: Messages = [{"role": "user", "content": first.strip()}] if first.strip() else []
    for speaker, said in zip(rest[::2], rest[1::2], strict=True):
        role = "assistant" if speaker == "Assistant" else "user"
        messages.append({"role": role, "content": said.strip()})
    if turns == "extra_id" and not messages[-1]["content"]:
        del messages[-1]  # the header of the response
    return messages


def _both_human(good: object, bad: object) -> bool:
    return all(isinstance(text, str) and text.lstrip().startswith("Human:") for text in (good, bad))


def _bare(messages: Messages) -> list[tuple[object, object]]:
    return [(m.get("role"), str(m.get("content")).strip()) for m in messages]


def _agrees(prompt: object, shared: Messages) -> bool:
    """The prompt column is the conversation before the response, or one of its user's turns."""
    if isinstance(prompt, list):
        asked, told = ([m for m in _bare(x) if m[0] != "system"] for x in (prompt, shared))
        if len(asked) > 1 or not asked:
            return asked == told
        prompt = asked[0][1]
    return any(role == "user" and content == str(prompt).strip() for role, content in _bare(shared))


def _with_system(prompt: object, fields: Mapping[str, object], given: Map) -> object:
    if given.system is None:
        return prompt
    text = fields.get(given.system)
    if text is None or not str(text).strip():
        return prompt
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    if messages and messages[0].get("role") == "system":
        return messages
    return [{"role": "system", "content": text}, *messages]


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
