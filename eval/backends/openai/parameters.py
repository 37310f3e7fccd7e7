"""The body of a request, and how it adapts to what an endpoint says it does not take: pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from dpeer.eval.backends.openai.faults import Fault
from dpeer.eval.backends.types import Call, Job, messages
from dpeer.eval.questions.readout import json_schema

TOP = 20
"""Most log-probabilities that the protocol lets us ask for."""
FEWER = 5
"""Asked for where an endpoint takes fewer and does not say how many."""
Form = Literal["json_schema", "json_object", "plain"]
_NEXT: dict[Form, Form | None] = {"json_schema": "json_object", "json_object": "plain", "plain": None}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one model at one endpoint is asked."""

    limit: str = "max_tokens"
    """Name of the parameter that limits an answer."""
    dropped: frozenset[str] = frozenset()
    top: int = TOP
    form: Form = "json_schema"
    """How a structured answer is asked for: by schema, as any JSON object, or in words only."""


def body(job: Job, call: Call, dialect: Dialect = Dialect()) -> dict[str, Any]:
    """The request of a call; `request` of the recipe has the last word, and a null there leaves a key out."""
    method = job.method
    limit = method.max_tokens + (job.served.reasoning_budget if method.mode != "logprob" else 0)
    values: dict[str, Any] = {
        "model": job.served.path,
        "messages": messages(call, method),
        dialect.limit: limit,
        "temperature": method.temperature,
        "top_p": method.top_p,
        "seed": None if call.seed is None else call.seed % 2**31,  # some servers take no more
    }
    if method.mode == "logprob":
        values |= {"logprobs": True, "top_logprobs": dialect.top}
    elif method.mode == "structured" and method.rubric and dialect.form != "plain":
        values["response_format"] = {"type": dialect.form}
        if dialect.form == "json_schema":
            schema = {"name": "rating", "strict": True, "schema": json_schema(method.rubric, method.choices)}
            values["response_format"]["json_schema"] = schema
    kept = {key: value for key, value in values.items() if key not in dialect.dropped} | job.served.request
    return {key: value for key, value in kept.items() if value is not None}


def adapted(dialect: Dialect, fault: Fault, sent: Mapping[str, Any], own: Mapping[str, Any]) -> Dialect | None:
    """The dialect that avoids this refusal of the request `sent`; None where there is none, or where the parameter is
    the recipe's `own`, which nobody else may change."""
    key = named(fault, sent)
    if key is None or key in own:
        return None
    said = _said(fault)
    if key in ("max_tokens", "max_completion_tokens"):
        other = "max_completion_tokens"
        wrong = dialect.limit == "max_tokens" and (other in said or _UNSUPPORTED.search(said))
        return replace(dialect, limit=other) if wrong else None
    if key == "response_format":
        form = _NEXT[dialect.form]
        return replace(dialect, form=form) if form else None
    if key in ("logprobs", "top_logprobs"):
        most = _most(said, dialect.top)
        return replace(dialect, top=most) if most else None
    if key in ("temperature", "top_p"):
        neutral = sent.get(key) in (0, 1)
        if not neutral and not _UNSUPPORTED.search(said):
            return None
        together = {"temperature", "top_p"} if key == "temperature" and "top_p" not in said else {"top_p"}
        gone = (together - own.keys()) - dialect.dropped or {key}
        return replace(dialect, dropped=dialect.dropped | gone) if gone - dialect.dropped else None
    return replace(dialect, dropped=dialect.dropped | {key}) if key == "seed" else None


def named(fault: Fault, sent: Mapping[str, Any]) -> str | None:
    """The parameter of the request that a refusal is about, as far as it says."""
    if fault.kind != "refused":
        return None
    keys = [key for key in _ADAPTABLE if key in sent]
    param = (fault.param or "").removeprefix("body.").partition(".")[0]
    if param in keys:
        return param
    said = _said(fault)
    found = [(match.start(), key) for key in keys if (match := _ADAPTABLE[key].search(said))]
    return min(found)[1] if found else None


def lacks_logprobs(fault: Fault, sent: Mapping[str, Any]) -> bool:
    """Whether a refusal says that there are no log-probabilities, however few are asked for."""
    about = named(fault, sent) in ("logprobs", "top_logprobs")
    return about and _UNSUPPORTED.search(_said(fault)) is not None


def changes(before: Dialect, after: Dialect) -> str:
    """What differs, in words."""
    said = []
    if before.limit != after.limit:
        said.append(f"{after.limit} in place of {before.limit}")
    if gone := sorted(after.dropped - before.dropped):
        said.append(f"no {' and '.join(gone)} (its own default{'s' if len(gone) > 1 else ''})")
    if before.top != after.top:
        said.append(f"top_logprobs {after.top} in place of {before.top}")
    if before.form != after.form:
        said.append("JSON asked for in words only" if after.form == "plain" else f"{after.form} for {before.form}")
    return ", ".join(said)


def _said(fault: Fault) -> str:
    return f"{fault.param or ''} {fault.message}".lower()


def _most(said: str, current: int) -> int | None:
    """The number of log-probabilities that a message allows, below the current one; None: none at all."""
    numbers = [int(n) for n in re.findall(r"(?<![\w.])\d{1,4}(?![\w.]*\w)", said)]
    allowed = [n for n in numbers if 0 < n < current]
    if allowed:
        return max(allowed)
    limit = re.search(r"top_logprobs|great|large|exceed|most|max|less|between|range|many", said)
    return FEWER if limit and current > FEWER else None


def _word(*alternatives: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z_])(?:{'|'.join(alternatives)})(?![a-z_])")


_ADAPTABLE = {
    "max_tokens": _word("max_tokens", "max_completion_tokens"),
    "temperature": _word("temperature"),
    "top_p": _word("top_p"),
    "seed": _word("seed"),
    "top_logprobs": _word("top_logprobs", "logprobs"),
    "logprobs": _word("logprobs", "logprob", "log probabilities"),
    "response_format": _word(
        "response_format", "json_schema", "json_object", "json mode", "structured outputs?", "grammar"
    ),
}
"""What may be left out, renamed or changed, and the words for it."""
_UNSUPPORTED = re.compile(
    r"unsupported|not support|n't support|unknown|unrecogni[sz]ed|unexpected|extra|not permitted|not allowed"
    r"|unavailable|not available|deprecated|instead|only the default|cannot both|incompatible"
    r"|cannot be (?:used|set|specified)"
)
