"""Prompts of several messages: how a table holds them, which turns the model under test answers, and the transcript.

A prompt is text, or the JSON text of a list of messages {role, content}. A user message that no assistant message
follows is one that the model under test answers, before it reads the next.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from dpeer.data.faults import excerpt
from dpeer.data.parse import Invalid, messages_in
from dpeer.data.schema import Message
from dpeer.eval.store.columns import empty, encodable

ROLES = ("system", "user", "assistant")
MARK = '[{"role": "'
"""How the text of a conversation begins."""


def prompt_text(value: object, column: str) -> str:
    """A cell as the text of a prompt: a single user message as it is, a conversation as JSON, in one form for one
    content. Read are text, the JSON text of messages, a list of messages and a list of texts, all of them the user's.

    Raises Invalid, which names the message, for what no model can be asked.
    """
    if isinstance(value, str):
        value = messages_in(value, column)
    if isinstance(value, list):
        messages = tuple(_message(item, f"{column}[{k}]") for k, item in enumerate(value))
        _refuse_order(messages, column)
    else:
        messages = (Message("user", _content(value, column)),)
    return shortest(messages)


def shortest(messages: Sequence[Message]) -> str:
    """Messages as the text of a prompt: a single user message as it is, unless it looks like a conversation."""
    single = [m.role for m in messages] == ["user"] and not messages[0].content.startswith(MARK)
    return messages[0].content if single else written(messages)


def written(messages: Sequence[Message]) -> str:
    """Messages as a table holds them."""
    return json.dumps([{"role": m.role, "content": m.content} for m in messages], ensure_ascii=False)


def messages_of(prompt: str) -> tuple[Message, ...]:
    """The messages of a prompt that `prompt_text` or `written` gave."""
    if not prompt.startswith(MARK):
        return (Message("user", prompt),)
    return tuple(Message(m["role"], m["content"]) for m in json.loads(prompt))


def conversation(prompt: str) -> bool:
    """Whether it is more than one user message."""
    return prompt.startswith(MARK)


def turns(prompt: str) -> int:
    """How many messages the model under test answers: 1 for most prompts."""
    return len(_open(messages_of(prompt)))


def so_far(prompt: str, answers: Sequence[str]) -> tuple[Message, ...]:
    """The conversation with the model's first answers, up to the user message that it answers next; with an answer
    to every one, the whole transcript."""
    messages = messages_of(prompt)
    places = _open(messages)
    said = dict(zip(places, answers, strict=False))
    end = places[len(answers)] if len(answers) < len(places) else len(messages)
    told: list[Message] = []
    for k, message in enumerate(messages[: end + 1]):
        told.append(message)
        if k in said:
            told.append(Message("assistant", said[k]))
    return tuple(told)


def _open(messages: Sequence[Message]) -> list[int]:
    """Places of the user messages that no assistant message follows."""
    after = [*(m.role for m in messages[1:]), "nobody"]
    return [k for k, m in enumerate(messages) if m.role == "user" and after[k] != "assistant"]


def _message(item: object, column: str) -> Message:
    if isinstance(item, str):
        return Message("user", _content(item, column))
    fields = {k: v for k, v in item.items() if not empty(v)} if isinstance(item, dict) else {}
    if fields.keys() != {"role", "content"}:
        raise Invalid(column, f"must be text, or an object with role and content only, got {excerpt(item)}")
    if fields["role"] not in ROLES:
        raise Invalid(f"{column}.role", f"{excerpt(fields['role'])} is not one of {', '.join(ROLES)}")
    return Message(fields["role"], _content(fields["content"], f"{column}.content"))


def _content(value: object, column: str) -> str:
    if empty(value) or (isinstance(value, str) and not value.strip()):
        raise Invalid(column, f"is empty ({excerpt(value)}); a prompt needs text")
    if not isinstance(value, str):
        raise Invalid(column, f"must be text, got {type(value).__name__} {excerpt(value)}")
    return encodable(value, column)


def _refuse_order(messages: Sequence[Message], column: str) -> None:
    """What chat templates refuse, or answer to another message than was meant."""
    roles = [m.role for m in messages]
    if not roles or roles[-1] != "user":
        last = roles[-1] if roles else "nothing"
        raise Invalid(column, f"must end with a user message, which the model answers; it ends with {last}")
    if "system" in roles[1:]:
        raise Invalid(f"{column}[{roles.index('system', 1)}].role", "a system message must be the first message")
    for k, role in enumerate(roles):
        if role == "assistant" and (k == 0 or roles[k - 1] != "user"):
            raise Invalid(f"{column}[{k}].role", "an assistant message must follow a user message")
