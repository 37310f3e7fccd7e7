"""From the bytes of a reply to an answer or a fault: a pure function that raises for nothing that a server can send."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from dpeer.eval.backends.openai.faults import Fault, fault, words
from dpeer.eval.questions.prompting import visible

LONGEST_PAUSE_S = 60.0
LEAST = -1e300
"""No log-probability is as low: what is stands for minus infinity."""
MOST = 2**31 - 1
"""Largest count that a column of the tables holds."""

STOPS = ("", "stop", "eos", "eos_token", "end_turn", "stop_sequence", "stop_token", "complete", "completed", "finish")
CUTS = ("length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded", "context_length")
FILTERS = (
    "content_filter",
    "safety",
    "recitation",
    "prohibited_content",
    "blocklist",
    "spii",
    "sensitive",
    "guardrail",
)
BROKEN = ("error", "abort", "aborted", "cancelled", "network_error", "insufficient_system_resource", "other")
TOOLS = ("tool_calls", "function_call", "tool_use")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer. finish: as in `Answer`: stop, length, refusal, filtered or error.

    top: (token, log-probability in nats) of the likeliest first tokens; empty where none came.
    """

    text: str
    finish: str
    thoughts: str | None = None
    error: str | None = None
    top: tuple[tuple[str, float], ...] = ()
    model: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    thought_tokens: int | None = None


def parse(status: int, headers: Mapping[str, str], body: bytes, now: datetime | None = None) -> Reply | Fault:
    """What a reply says. Header names in lower case; a date to wait for counts from `now` (default: the clock's).

    An error object inside a 200 is taken for the status that it names. Events of a stream that nobody asked for are
    put together.
    """
    pause = pause_s(headers, now)
    text = body.decode("utf-8-sig", "replace").strip()
    streamed = status == 200 and text.startswith(("data:", "event:", ":"))
    value = _streamed(text) if streamed else _json(text)
    if status != 200:
        return fault(status, _page(text) if value is None else value, pause)
    if not text:
        return Fault("passing", "an empty reply", status)
    if value is None:
        return Fault("passing" if streamed or text.startswith("{") else "stranger", f"no JSON: {_page(text)}", status)
    return _completion(value, pause)


def completion(value: Any) -> Reply | Fault:
    """As `parse`, of the decoded body of a 200."""
    return _completion(value, 0.0)


def _completion(value: Any, pause: float) -> Reply | Fault:
    if not isinstance(value, dict):
        return Fault("stranger", f"no chat completion: {words([value])}", 200)
    if _is_error(value):
        error = value.get("error") or value
        return fault(_code(error) or _code(value), error, pause)
    choices = value.get("choices")
    if not isinstance(choices, list):
        return Fault("stranger", f"no chat completion: {words(value)}", 200)
    found = [choice for choice in choices if isinstance(choice, dict)]
    if not found:
        return Fault("empty", "the endpoint gave no choices", 200)
    choice = next((c for c in found if c.get("index") in (0, None)), found[0])
    if choice.get("error"):
        inside = choice["error"]
        return fault(_code(inside), inside, pause)
    read = _choice(choice)
    if isinstance(read, Fault):
        return read
    prompt, cached, output, thought = _usage(value.get("usage"))
    return replace(
        read,
        model=_name(value),
        prompt_tokens=prompt,
        cached_tokens=cached,
        output_tokens=output,
        thought_tokens=thought,
    )


def _is_error(value: Mapping[str, Any]) -> bool:
    """An error where the answer should be, in any of the forms that are met."""
    if value.get("error"):
        return True
    if "choices" in value:
        return False
    return value.get("object") == "error" or "detail" in value or (_code(value) is not None and "message" in value)


def _code(error: Any) -> int | None:
    """The HTTP status that an error object names."""
    for key in ("code", "status", "status_code", "http_code"):
        value = error.get(key) if isinstance(error, dict) else None
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == 3:
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600:
            return value
    return None


def _choice(choice: Mapping[str, Any]) -> Reply | Fault:
    given = choice.get("message")
    message: Mapping[str, Any] = given if isinstance(given, dict) else {}
    reason = _reason(choice.get("finish_reason"))
    text, thoughts, declined = _parts(message.get("content", choice.get("text")))
    thoughts = _joined([_reasoning(message), thoughts])
    refusal = message.get("refusal")
    declined = _joined([refusal if isinstance(refusal, str) else "", declined])
    if declined and not text.strip():
        return Reply(declined, "refusal", thoughts or None)
    if reason.startswith(FILTERS):
        return Reply(text, "filtered", thoughts or None, error=f"the endpoint ended the answer with {reason[:80]}")
    if reason == "refusal":
        return Reply(text, "refusal", thoughts or None)
    if reason in CUTS:
        return Reply(text, "length", thoughts or None, top=_top(choice))
    if reason in BROKEN:
        return Fault("passing", f"the endpoint ended the answer with {reason}", 200)
    if reason in TOOLS and not text.strip():
        return Reply("", "error", thoughts or None, error="the answer is the call of a tool, and none was offered")
    if reason not in STOPS and reason not in TOOLS:
        return Reply(text, "error", thoughts or None, error=f"the endpoint ended the answer with {reason[:80]}")
    if not isinstance(message.get("content", choice.get("text")), str | list):
        return Fault("empty", "the answer has no content", 200)
    return Reply(text, "stop", thoughts or None, top=_top(choice))


def _reason(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else words([value])
    return visible(text).strip().lower()


def _parts(content: Any) -> tuple[str, str, str]:
    """(text, thoughts, refusal) of a message's content: a text, or a list of parts."""
    if isinstance(content, str):
        return content, "", ""
    text, thoughts, declined = [], [], []
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, str):
            text.append(part)
        elif kind in ("thinking", "reasoning", "reasoning_content"):
            thoughts.append(_inner(part))
        elif kind == "refusal":
            declined.append(_inner(part))
        elif isinstance(part, dict):
            text.append(_inner(part))
    return "".join(text), _joined(thoughts), _joined(declined)


def _inner(part: Any, depth: int = 0) -> str:
    """The text in a part, which some servers nest."""
    if isinstance(part, str):
        return part
    if depth > 3:
        return ""
    if isinstance(part, list):
        return "".join(_inner(p, depth + 1) for p in part)
    if isinstance(part, dict):
        keys = ("text", "thinking", "reasoning", "reasoning_content", "refusal", "summary", "content", "value")
        return next((found for key in keys if (found := _inner(part.get(key), depth + 1))), "")
    return ""


def _reasoning(message: Mapping[str, Any]) -> str:
    keys = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
    return next((found for key in keys if (found := _inner(message.get(key)))), "")


def _joined(texts: Iterable[str]) -> str:
    return "\n".join(dict.fromkeys(text for text in texts if text.strip()))


def _top(choice: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    first = content[0] if isinstance(content, list) and content else None
    listed = first.get("top_logprobs") if isinstance(first, dict) else None
    found = []
    for entry in listed if isinstance(listed, list) else ():
        token, value = (entry.get("token"), entry.get("logprob")) if isinstance(entry, dict) else (None, None)
        if isinstance(token, str) and isinstance(value, int | float) and not isinstance(value, bool):
            found.append((token, value))
    return tuple((token, float(value)) for token, value in found if LEAST < value <= 1)


def _usage(usage: Any) -> list[int | None]:
    """Tokens of the prompt, of these cached, of the answer, of these thoughts."""
    usage = usage if isinstance(usage, dict) else {}
    prompt, output = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    cached = prompt.get("cached_tokens") if isinstance(prompt, dict) else usage.get("prompt_cache_hit_tokens")
    thought = output.get("reasoning_tokens") if isinstance(output, dict) else None
    return [_count(n) for n in (usage.get("prompt_tokens"), cached, usage.get("completion_tokens"), thought)]


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= MOST else None


def _name(value: Mapping[str, Any]) -> str | None:
    name = value.get("model")
    return visible(name)[:200] if isinstance(name, str) and name else None


def _json(text: str) -> Any:
    """The value, or None where it is none: null is no reply either."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _page(text: str) -> str:
    return visible(" ".join(text.split()))[:200]


def _streamed(text: str) -> Any:
    """The completion whose pieces are the events of a stream; None where no event can be read."""
    lines = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
    events = [event for line in lines if line != "[DONE]" and isinstance(event := _json(line), dict)]
    if not events:
        return None
    whole: dict[str, Any] = {**events[0]}
    pieces = {"content": "", "reasoning_content": "", "refusal": ""}
    choice: dict[str, Any] = {"index": 0, "finish_reason": None}
    for event in events:
        whole |= {key: event[key] for key in ("usage", "error", "model") if event.get(key)}
        listed = event.get("choices")
        for part in listed if isinstance(listed, list) else ():
            if not isinstance(part, dict) or part.get("index") not in (0, None):
                continue
            choice |= {key: part[key] for key in ("finish_reason", "error") if part.get(key)}
            if part.get("logprobs") and "logprobs" not in choice:
                choice["logprobs"] = part["logprobs"]
            delta = part.get("delta")
            for key in pieces:
                piece = delta.get(key) if isinstance(delta, dict) else None
                pieces[key] += piece if isinstance(piece, str) else ""
    if "choices" in whole:
        whole["choices"] = [choice | {"message": pieces}]
    return whole


def pause_s(headers: Mapping[str, str], now: datetime | None = None) -> float:
    """Seconds that the endpoint asks to wait, at most LONGEST_PAUSE_S: milliseconds, seconds or a date."""
    said = headers.get("retry-after-ms"), headers.get("retry-after")
    for text, unit in zip(said, (1e-3, 1.0), strict=True):
        try:
            seconds = float(text or "nan") * unit
        except ValueError:
            seconds = _until(text or "", now or datetime.now(UTC))
        if seconds == seconds:
            return min(max(seconds, 0.0), LONGEST_PAUSE_S)
    return 0.0


def _until(date: str, now: datetime) -> float:
    try:
        then = parsedate_to_datetime(date)
        return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp() - now.timestamp()
    except (ValueError, TypeError, OverflowError):
        return math.nan
