"""Replies of an OpenAI-compatible endpoint, word by word."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from dpeer.errors import ConfigError
from dpeer.eval.backends.config import Served
from dpeer.eval.backends.openai.secrets import key_of, without_secrets
from dpeer.eval.config import Generation

TIMEOUT = httpx.Timeout(30, read=300)
SHOWN = 300
"""Characters of an endpoint's error that are shown."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a reply: text; or how it ended (`stop`, `length`, ...); or why there is none."""

    kind: Literal["text", "end", "error"]
    text: str


def request(served: Served, messages: Sequence[Mapping[str, str]], generation: Generation) -> dict[str, Any]:
    """What is asked for; the recipe's `request` has the last word, and a null there leaves a key out."""
    system = [{"role": "system", "content": generation.system}] if generation.system else []
    values: dict[str, Any] = {
        "model": served.path,
        "messages": [*system, *messages],
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "max_tokens": generation.max_tokens,
        "stream": True,
    }
    return {key: value for key, value in (values | served.request).items() if value is not None}


async def reply(
    client: httpx.AsyncClient, served: Served, messages: Sequence[Mapping[str, str]], generation: Generation
) -> AsyncIterator[Piece]:
    """The pieces of one reply, the last of kind `end` or `error`. Closing the iterator ends the request."""
    try:
        key = key_of(served)
    except ConfigError as unusable:
        yield Piece("error", str(unusable))
        return
    url = f"{str(served.base_url).rstrip('/')}/chat/completions"
    finish, told, reasoned = "", False, False
    try:
        async with client.stream(
            "POST",
            url,
            json=request(served, messages, generation),
            headers={"Authorization": f"Bearer {key or 'none'}"},
            timeout=TIMEOUT,
        ) as came:
            if came.status_code != 200:
                said = (await came.aread()).decode(errors="replace")
                yield Piece("error", f"HTTP {came.status_code}: {without_secrets(_message(said), key)[:SHOWN]}")
                return
            async for line in came.aiter_lines():
                if not line.startswith("data:"):
                    continue
                data = line[5:].strip()
                if data == "[DONE]":
                    break
                text, ended, error = _delta(data)
                reasoned = reasoned or ("reasoning" in data and not text)
                if error:
                    yield Piece("error", without_secrets(error, key)[:SHOWN])
                    return
                if text:
                    told = True
                    yield Piece("text", text)
                finish = ended or finish
    except (httpx.HTTPError, httpx.InvalidURL) as failed:
        yield Piece("error", without_secrets(str(failed) or type(failed).__name__, key)[:SHOWN])
        return
    if finish == "length" and not told:
        why = "its reasoning took them all" if reasoned else "it wrote none of it"
        yield Piece("error", f"no answer within the limit of tokens ({why}); --max-tokens allows more")
    elif finish:
        yield Piece("end", finish)
    else:
        yield Piece("error", "the endpoint broke off in the middle of its reply")


def _delta(data: str) -> tuple[str, str, str]:
    """(text, reason of the end, error) of one event."""
    try:
        event = json.loads(data)
        if error := event.get("error"):
            return "", "", str(error.get("message", error) if isinstance(error, dict) else error)
        if not (choices := event.get("choices")):
            return "", "", ""
        choice = choices[0]
        return str((choice.get("delta") or {}).get("content") or ""), str(choice.get("finish_reason") or ""), ""
    except (ValueError, AttributeError, KeyError, IndexError, TypeError):
        return "", "", "the endpoint sent what is no event of a chat completion"


def _message(said: str) -> str:
    try:
        error = json.loads(said)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return " ".join(said.split())
