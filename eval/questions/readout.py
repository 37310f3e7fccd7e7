"""From what a judge answered to a reading: every answer becomes a status, none an exception."""

from __future__ import annotations

import bisect
import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dpeer.data.faults import excerpt
from dpeer.errors import ConfigError
from dpeer.eval.questions.prompting import generation_ids, visible
from dpeer.eval.questions.rubric import Rubric

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RAW_EXCERPT = 200
"""Characters of an answer that could not be read, kept in its error."""
SLACK = 0.01
"""A probability mass may exceed 1 by this much from rounding."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer, read. `score` is None unless the status is ok; `expected` and `mass` exist for log-probabilities."""

    status: str
    score: int | None = None
    expected: float | None = None
    mass: float | None = None
    rationale: str | None = None
    error: str | None = None
    choice: str | None = None
    """What a comparison chose, where JSON said it."""


def rating_token_ids(
    tokenizer: PreTrainedTokenizerBase, rubric: Rubric, choices: tuple[str, ...] = ()
) -> tuple[int, ...]:
    """The token id of each score, lowest first, or of each choice, as it would follow the chat template's generation
    prompt.

    Raises ConfigError where one is not exactly one token there.
    """
    if choices:
        return _answer_ids(tokenizer, str(tokenizer.chat_template), choices, "choice")
    if rubric.scale[-1] > 9:
        raise ConfigError(
            f"rubric {rubric.name}: the scale ends at {rubric.scale[-1]}, but log-probabilities are read from one "
            f"digit; use a scale within 0 to 9, or {_OTHER_MODE}"
        )
    return _answer_ids(tokenizer, str(tokenizer.chat_template), tuple(map(str, rubric.scale)), "score")


_OTHER_MODE = "set judging.mode to structured (of pairs: judging.pairwise_read), which reads a JSON answer instead"


@lru_cache(maxsize=8)
def _answer_ids(
    tokenizer: PreTrainedTokenizerBase, template: str, answers: tuple[str, ...], kind: str
) -> tuple[int, ...]:
    start = generation_ids(tokenizer)
    ids = []
    for answer in answers:
        whole = generation_ids(tokenizer, answer)
        added = whole[len(start) :]
        if whole[: len(start)] != start or len(added) != 1 or added[0] == tokenizer.unk_token_id:
            raise ConfigError(
                f"judge {tokenizer.name_or_path or 'without a name'}: after the generation prompt of its chat template "
                f"the {kind} {answer} is not one token of its own but {tokenizer.convert_ids_to_tokens(added)}; "
                f"{_OTHER_MODE}"
            )
        ids.append(added[0])
    return tuple(ids)


def read_logprobs(
    logprobs: Sequence[float | None] | None,
    scale: Sequence[int],
    min_mass: float,
    draw: float | None = None,
    undecided: int | None = None,
) -> Reading:
    """Reading of the raw log-probability (nats) of each score, lowest first.

    expected: mean score under the distribution renormalised over the scale. mass: probability of all rating tokens
    together; below `min_mass` the status is low_mass. score: the most probable one, of equals the lowest, or
    `undecided` where that is given; with `draw` in [0, 1) the one at that quantile of the renormalised distribution.
    -inf is probability 0; a missing, NaN or positive value is no reading and gives engine_error.
    """
    if logprobs is None or len(logprobs) != len(scale):
        returned = "none" if logprobs is None else str(len(logprobs))
        return Reading("engine_error", error=f"{len(scale)} log-probabilities expected, {returned} returned")
    for score, value in zip(scale, logprobs, strict=True):
        if value is None or math.isnan(value) or value > SLACK:
            return Reading("engine_error", error=f"log-probability of score {score} is {value}")
    values = [float(v) for v in logprobs if v is not None]
    highest = max(values)
    if highest == -math.inf:
        return Reading("low_mass", mass=0.0, error="no rating token has any probability")
    weights = [math.exp(v - highest) for v in values]
    mass = sum(math.exp(v) for v in values)
    if mass > 1 + SLACK:
        return Reading("engine_error", error=f"the rating tokens have probability {mass:.3f} together, more than 1")
    expected = sum(w * score for w, score in zip(weights, scale, strict=True)) / sum(weights)
    mass = min(mass, 1.0)
    if mass < min_mass:
        return Reading(
            "low_mass", expected=expected, mass=mass, error=f"{mass:.2g} of the probability is on rating tokens"
        )
    if draw is not None:
        score = scale[bisect.bisect_right(list(itertools.accumulate(weights))[:-1], draw * sum(weights))]
    elif undecided is not None and values.count(highest) > 1:
        score = undecided
    else:
        score = scale[values.index(highest)]
    return Reading("ok", score=score, expected=expected, mass=mass)


def json_schema(rubric: Rubric, choices: Sequence[str] = ()) -> dict[str, Any]:
    """JSON schema of a structured answer, rationale before score, or before the better one of choices."""
    key, of = (BETTER, "string") if choices else (SCORE, "integer")
    return {
        "type": "object",
        "properties": {
            "rationale": {"type": "string"},
            key: {"type": of, "enum": list(choices or rubric.scale)},
        },
        "required": ["rationale", key],
        "additionalProperties": False,
    }


SCORE, BETTER = "score", "better"


def read_structured(text: str | None, finish_reason: str | None, scale: Sequence[int] | Sequence[str]) -> Reading:
    """Reading of a JSON answer; never raises.

    ok: the whole text, but for a Markdown fence around it, is one JSON object with exactly the keys rationale (text)
    and score (a JSON integer on the scale; 5.0, "5" and true are not). Else truncated where the engine stopped at its
    token limit, engine_error where it gave up, and unparsed otherwise, with the start of the text in `error`. With
    choices in place of a scale the second key is `better`, and the reading has a `choice` instead of a score.
    """
    answer = text if isinstance(text, str) else ""
    try:
        rationale, score = _structured(answer, scale)
    except (ValueError, RecursionError) as fault:
        ended = {"length": "truncated", "abort": "engine_error", "error": "engine_error"}
        status = ended.get(finish_reason or "", "unparsed")
        why = "nested too deeply" if isinstance(fault, RecursionError) else str(fault)
        stop = f" (finish reason {finish_reason})" if finish_reason not in (None, "stop") else ""
        return Reading(status, error=f"{visible(why)}{stop}: {excerpt(answer, RAW_EXCERPT)}")
    if isinstance(score, str):
        return Reading("ok", choice=score, rationale=visible(rationale))
    return Reading("ok", score=score, rationale=visible(rationale))


def _structured(text: str, scale: Sequence[int] | Sequence[str]) -> tuple[str, int | str]:
    """Raises ValueError or RecursionError that says what is wrong."""
    fenced = _FENCED.fullmatch(text)
    value = json.loads(fenced[1] if fenced else text, object_pairs_hook=_unique)
    kind = type(scale[0])
    key = BETTER if kind is str else SCORE
    if not isinstance(value, dict) or value.keys() != {"rationale", key}:
        raise ValueError(f"not an object with the keys rationale and {key} only")
    rationale, score = value["rationale"], value[key]
    if not isinstance(rationale, str):
        raise ValueError("the rationale is not text")
    if type(score) is not kind or score not in scale:
        raise ValueError(f"the {key} is not one of {', '.join(map(str, scale))}")
    return rationale, score


_FENCED = re.compile(r"\s*(?:```|~~~)[ \t]*(?:json|JSON)?[ \t]*\r?\n(.*?)\r?\n?[ \t]*(?:```|~~~)\s*", re.DOTALL)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)
