"""Texts and messages as other tools write them -> messages of role and content, and what a pair of them shares."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from dpeer.config_sources import Map
from dpeer.data.faults import excerpt
from dpeer.data.parse import Invalid, blank, is_message, spoken
from dpeer.data.parts import PARTS

Messages = list[dict[str, object]]

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
SPEAKERS |= {"model": "assistant", "assistant": "assistant", "system": "system"}
"""Names of roles, among them those of ShareGPT files."""
HUMAN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):[ ]?")
EXTRA_ID = re.compile(r"\n?<extra_id_1>(User|Assistant)\n?")


class Malformed(Exception):
    """A text whose marks make no conversation: published sets hold some, and nothing can be mended there."""


@dataclass(frozen=True, slots=True)
class Pair:
    """column: where the prompt stands."""

    prompt: object
    column: str
    golden: object
    reject: object


def conversation(value: object, turns: str | None = None, column: str = "") -> Messages | None:
    """The messages of a list, of one message, of their text as JSON or Python writes it, or of a text with marks of
    turns; None for a plain text and for anything else. Blank system messages are left out; messages that are not
    understood stay as they are, for the parser to refuse.

    Invalid: a text that begins as messages do and cannot be read. Malformed: marks that make no conversation.
    """
    if isinstance(value, str):
        messages = spoken(value, column) or _one(value)
        if messages:
            return conversation(messages)
        return _marked(value, turns) if turns else None
    if isinstance(value, dict) and _message(value) is not value:
        return [_message(value)]
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        messages = [_message(item) for item in value]
        return [m for m in messages if m.get("role") != "system" or not blank(m.get("content"))] or None
    return None


def plain(value: object, column: str) -> object:
    """A response: text, or what the only message says."""
    messages = conversation(value, column=column)
    if messages is None:
        return value
    if len(messages) > 1 or messages[0].get("role") != "assistant":
        roles = ", ".join(str(m.get("role")) for m in messages)
        raise Invalid(column, f"must be a response, a text or one message of the assistant; got messages of {roles}")
    _refuse_more(messages, column)
    return _answer(messages[0])


def joined_prompt(fields: Mapping[str, object], given: Map) -> tuple[object, str]:
    """(text or messages, the column they come from). Text that begins with "Human:" holds turns, said or not."""
    columns = (given.prompt,) if isinstance(given.prompt, str) else given.prompt or ()
    if not columns:
        raise Invalid("prompt", "is missing; name the column of the prompt by data.map.prompt")
    if columns[0] not in fields:
        raise Invalid(columns[0], f"is missing; the row has {excerpt(', '.join(map(str, fields)), 100)}")
    value = fields[columns[0]]
    if len(columns) > 1:
        value = "\n".join(str(fields[c]) for c in columns if fields.get(c) is not None and str(fields[c]).strip())
    turns = given.turns or ("human" if _begins_human(value) else None)
    messages = conversation(value, turns, columns[0])
    if messages and _is_marked(value, turns):
        if messages[-1] == {"role": "assistant", "content": ""}:
            del messages[-1]  # the header of the response
        if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"]:
            raise Malformed
    return _with_system(messages or value, fields, given), columns[0]


def pair_of(fields: Mapping[str, object], given: Map, good: object, bad: object) -> Pair | None:
    """Prompt and both responses of a row; None where two conversations differ before their last turn.

    Each side is a response, or a conversation that ends with it; the prompt is a column, or what both begin with.
    """
    assert given.golden and given.reject
    asked = fields.get(given.prompt) if isinstance(given.prompt, str) else None
    human = _begins_human(asked) or (_begins_human(good) and _begins_human(bad))
    turns = given.turns or ("human" if human else None)
    (before, golden), (other, reject) = (
        _side(value, turns, column, alone=given.prompt is None)
        for value, column in ((good, given.golden), (bad, given.reject))
    )
    if before and other and _bare(before) != _bare(other):
        return None
    shared = before or other
    if given.prompt is None or (shared and isinstance(given.prompt, str) and blank(asked)):
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


def _side(value: object, turns: str | None, column: str, alone: bool) -> tuple[Messages, object]:
    """(what comes before the response, the response). alone: there is no column of the prompt; beside one, a text that
    begins with no mark goes on where the prompt's last mark stands."""
    if turns == "human" and not alone and isinstance(value, str) and not HUMAN.match(value):
        messages = conversation(value, column=column)
        value = value.strip()
    else:
        messages = conversation(value, turns, column)
    if messages is None:
        return [], value
    starts, ends = messages[0].get("role"), messages[-1].get("role")
    if _is_marked(value, turns) and (ends != "assistant" or (alone and starts != "user")):
        raise Malformed
    if ends != "assistant":
        raise Invalid(column, f"must end with a message of the assistant; it ends with {excerpt(messages[-1])}")
    _refuse_more(messages, column)
    return messages[:-1], _answer(messages[-1])


def _answer(message: dict[str, object]) -> object:
    """The content of a message of the assistant; with its parts, where it has any, as an object of text and these."""
    more = {k: v for k, v in message.items() if k not in ("role", "content")}
    return {"text": message.get("content"), **more} if more else message.get("content")


def _refuse_more(messages: Messages, column: str) -> None:
    """Invalid: a message holds what training would not see."""
    for message in messages:
        role = message.get("role")
        known = ("role", "content", *(PARTS.get(role, ()) if isinstance(role, str) else ()))
        if more := [key for key in message if key not in known]:
            raise Invalid(
                column,
                f"a message of {role} holds {excerpt(', '.join(map(str, more)))} beside "
                f"{', '.join(known)}, and it would not be trained; write it into content, or remove it",
            )


def _message(item: dict[str, object]) -> dict[str, object]:
    """As {role, content}; anything else as it is."""
    kept = {k: v for k, v in item.items() if v is not None}
    if {"from", "value"} <= kept.keys():
        kept = {"role": kept["from"], "content": kept["value"]}
    if kept.get("tool_calls"):
        kept.setdefault("content", "")
    if not {"role", "content"} <= kept.keys():
        return item
    content, role = kept["content"], kept["role"]
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        content = "".join(p["text"] for p in content)
    extra = {k: v for k, v in kept.items() if k not in ("role", "content") and v not in ("", [], {})}
    return {"role": SPEAKERS.get(role, role) if isinstance(role, str) else role, "content": content, **extra}


def _marked(text: str, turns: str) -> Messages | None:
    """Malformed: an earlier turn is empty, or a speaker has two in a row."""
    mark = HUMAN if turns == "human" else EXTRA_ID
    first, *rest = mark.split(text)
    if not rest:
        return None
    messages: Messages = [{"role": "user", "content": first.strip()}] if first.strip() else []
    for speaker, said in zip(rest[::2], rest[1::2], strict=True):
        role = "assistant" if speaker == "Assistant" else "user"
        messages.append({"role": role, "content": said.strip()})
    if any(a["role"] == b["role"] or not a["content"] for a, b in pairwise(messages)):
        raise Malformed
    return messages


def _is_marked(value: object, turns: str | None) -> bool:
    """Whether the messages of a value come from marks of turns."""
    return turns is not None and isinstance(value, str) and conversation(value) is None


def _begins_human(text: object) -> bool:
    return isinstance(text, str) and text.lstrip().startswith("Human:")


def _bare(messages: Messages) -> list[tuple[object, ...]]:
    return [(m.get("role"), str(m.get("content")).strip(), *filter(None, [m.get("tool_calls")])) for m in messages]


def _agrees(prompt: object, shared: Messages) -> bool:
    """The prompt column is the conversation before the response, or one of its user's turns."""
    if isinstance(prompt, list):
        asked, told = ([m for m in _bare(x) if m[0] != "system"] for x in (prompt, shared))
        if len(asked) > 1 or not asked:
            return asked == told
        prompt = asked[0][1]
    return ("user", str(prompt).strip()) in _bare(shared)


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


def _one(text: str) -> Messages | None:
    """The message that a text is the JSON of."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return [value] if is_message(value) else None
