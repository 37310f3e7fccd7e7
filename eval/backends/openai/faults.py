"""What an endpoint's refusal means: its status and its words, which every vendor chooses anew."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from dpeer.eval.questions.prompting import visible

Kind = Literal["passing", "empty", "busy", "credit", "key", "absent", "too_long", "filtered", "refused", "stranger"]
"""passing: the same request may succeed in a moment. empty: an answer without content, worth one more try. busy: wait
as long as it takes. credit, key, absent: no request will succeed. too_long, filtered: this text never will. refused:
this request never will, and perhaps no other. stranger: what came is no chat completion."""

SHOWN = 500
"""Characters of a message that are kept."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why there is no answer. `status`: as HTTP said it, or as an error object inside a 200 did."""

    kind: Kind
    message: str
    status: int | None = None
    param: str | None = None
    pause_s: float = 0.0
    """Seconds that the endpoint asks to be left alone."""


def fault(status: int | None, error: Any, pause_s: float = 0.0) -> Fault:
    """Fault of an HTTP status and the error that came with it (an object, a text, or whatever stood in its place)."""
    error = error.get("error") or error if isinstance(error, dict) else error
    fields = error if isinstance(error, dict) else {}
    message = words(error) or f"status {status}"
    labels = " ".join(str(fields.get(key) or "") for key in ("code", "type", "status", "error_type", "innererror"))
    param = fields.get("param")
    kind = _kind(status, f"{labels} {message}".lower())
    return Fault(kind, message, status, param if isinstance(param, str) else None, pause_s)


def words(error: Any) -> str:
    """The text of an error: its message where it has one, else all of it."""
    found = error
    for _ in range(4):
        if not isinstance(found, dict):
            break
        found = next((found[key] for key in ("message", "error", "detail", "msg") if found.get(key)), None)
    if found is None and isinstance(error, dict):
        found = error or None
    if found is None:
        return ""
    text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, default=str)
    return visible(text).strip()[:SHOWN]


def _kind(status: int | None, said: str) -> Kind:
    if _CREDIT_CODE.search(said) or status == 402 or (status in (None, 400, 403, 429) and _CREDIT.search(said)):
        return "credit"
    if status == 403 and _QUOTA.search(said):
        return "credit"
    if status != 429 and not _LIMIT_PARAMETER.search(said) and (status == 413 or _TOO_LONG.search(said)):
        return "too_long"
    if status in (None, 400, 403, 422, 451, 500) and _FILTERED.search(said):
        return "filtered"
    if status in (429, 529) or _BUSY.search(said):
        return "busy"
    if status in (401, 403, 407):
        return "key"
    if status in (404, 405, 410):
        return "absent"
    if status is None or status in (408, 409, 425) or status >= 500 or status < 400:
        return "passing"
    return "refused"


_CREDIT_CODE = re.compile(r"insufficient_quota|exceeded_current_quota|insufficient_balance|billing_hard_limit")
_CREDIT = re.compile(
    r"insufficient (?:balance|credit|fund)|credit balance|credits? (?:are|is|have|has)\b.{0,20}(?:used|exhaust|deplet)"
    r"|out of credit|not enough credit|no credits|payment required|arrearage|overdue|spend(?:ing)? limit"
    r"|budget has been exceeded|requires more credits"
)
_QUOTA = re.compile(
    r"key limit|quota|(?:daily|weekly|monthly|total) limit|limit exceeded|exceeded .{0,30}limit|billing"
)
"""Said with 403; with 429 the same words are used for limits per minute."""
_LIMIT_PARAMETER = re.compile(
    r"max_(?:completion_)?tokens.{0,40}(?:too large|too big|must be|at most|invalid|unsupported)"
)
_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|string_above_max_length|request_too_large"
    r"|(?:maximum|max|model'?s|available) context (?:length|size|window)|exceed\w* .{0,40}context|context window"
    r"|(?:prompt|input|request|message)s? (?:is|are|was|were) (?:too (?:long|large)|longer than)"
    r"|input (?:token count|length|tokens?) .{0,60}(?:exceed|must be|longer|maximum)|range of input length"
    r"|exceeds? the (?:maximum|max|allowed) (?:number of (?:input )?tokens|input|prompt|length)"
    r"|too many (?:input |prompt )?tokens|reduce the length|too large for model|inputs` tokens|longer than the maximum"
    r"|prompt contains .{0,40}too large|max_model_len|max_seq_len|token limit"
)
_FILTERED = re.compile(
    r"content[ _-]?(?:filter|policy|management|moderation)|contentfilter|content exists risk|flagged|moderation"
    r"|data_inspection_failed|datainspection|inappropriate content|unsafe content"
    r"|sensitive (?:content|information|word)"
    r"|responsible ai|prohibited_content|safety (?:system|filter|setting)|blocked by .{0,30}(?:policy|safety|guardrail)"
    r"|guardrail"
)
_BUSY = re.compile(
    r"overloaded|loading model|model is (?:currently )?loading|(?:server|service) (?:is )?busy|at capacity"
)
