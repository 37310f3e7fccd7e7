"""Calls to an OpenAI-compatible endpoint. The key comes from the environment and goes nowhere but to the endpoint."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any

from dpeer.errors import ClusterError, ConfigError
from eval.engine import Answer, Call, Job, messages, refused
from eval.readout import json_schema

AT_ONCE = 32
"""Most requests under way; engine.max_num_seqs may lower it."""
BATCH = 64
"""Answers that are handed out, and so written, together."""
RETRIES = 6
"""The client's own, with exponential backoff, for lost connections, timeouts, 409, 429 and 5xx."""
TOP = 20
"""Most log-probabilities that the protocol lets us ask for."""


def answers(job: Job, calls: Iterable[Call], timeout_s: float = 300.0) -> Iterator[list[Answer]]:
    """Answers as they come, in batches. A request that the endpoint refuses becomes an error answer.

    Raises ClusterError when the endpoint cannot be reached, refuses the key or the model, or gives no log-probabilities
    where they are asked for: then every further call would fail the same way.
    """
    ask = _asker(job, timeout_s)
    source = iter(calls)
    limit = min(AT_ONCE, job.settings.max_num_seqs)
    finished: list[Answer] = []
    with ThreadPoolExecutor(limit) as pool:
        try:
            under_way: set[Future[Answer]] = {pool.submit(ask, call) for call in islice(source, limit)}
            while under_way:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                finished += [future.result() for future in done]
                under_way |= {pool.submit(ask, call) for call in islice(source, len(done))}
                if len(finished) >= BATCH:
                    yield finished
                    finished = []
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if finished:
        yield finished


def _asker(job: Job, timeout_s: float) -> Callable[[Call], Answer]:
    import openai

    served = job.served
    key = os.environ.get(served.api_key_env) or ""
    client = openai.OpenAI(base_url=served.base_url, api_key=key or "none", timeout=timeout_s, max_retries=RETRIES)

    def hide(text: object) -> str:
        return str(text).replace(key, "<key>") if key else str(text)

    def ask(call: Call) -> Answer:
        try:
            reply = client.chat.completions.create(**_request(job, call))
        except (openai.BadRequestError, openai.UnprocessableEntityError, openai.InternalServerError) as error:
            return _declined(call, error, hide)
        except openai.APIStatusError as error:
            said = hide(error.message)[:300]
            hint = f"; the key is read from {served.api_key_env}" if error.status_code in (401, 403) else ""
            raise _stopped(job, f"answers {error.status_code} ({said}){hint}") from None
        except openai.APIConnectionError as error:
            raise _stopped(job, f"cannot be reached ({hide(error.__cause__ or error)[:300]})") from None
        return _answer(job, call, reply)

    return ask


def _stopped(job: Job, what: str) -> ClusterError:
    return ClusterError(
        f"{job.served.name}: the endpoint {job.served.base_url} {what}. What was finished is saved: put it right and "
        "run the same command again."
    )


def _declined(call: Call, error: Any, hide: Callable[[object], str]) -> Answer:
    message = hide(error.message)
    if error.code == "context_length_exceeded" or "maximum context length" in message:
        return Answer(call.id, "too_long", error=message[:500])
    return refused(call, message, None, None)


def _request(job: Job, call: Call) -> dict[str, Any]:
    method = job.method
    request: dict[str, Any] = {
        "model": job.served.path,
        "messages": messages(call, method),
        "max_tokens": method.max_tokens,
        "temperature": method.temperature,
        "top_p": method.top_p,
        "seed": call.seed,
    }
    if method.mode == "logprob":
        request |= {"logprobs": True, "top_logprobs": TOP}
    elif method.mode == "structured" and method.rubric:
        schema = {"name": "rating", "strict": True, "schema": json_schema(method.rubric)}
        request["response_format"] = {"type": "json_schema", "json_schema": schema}
    return request


def _answer(job: Job, call: Call, reply: Any) -> Answer:
    if not reply.choices:
        return refused(call, "the endpoint gave no choices", None, None)
    choice, usage = reply.choices[0], reply.usage
    details = usage.prompt_tokens_details if usage else None
    finish = {"stop": "stop", "length": "length"}.get(choice.finish_reason, "error")
    return Answer(
        call.id,
        finish,
        choice.message.content or "",
        _ratings(job, choice),
        error=None if finish != "error" else f"the endpoint ended the answer with {choice.finish_reason}",
        prompt_tokens=usage.prompt_tokens if usage else None,
        cached_tokens=details.cached_tokens if details else None,
        output_tokens=usage.completion_tokens if usage else 0,
        engine=f"openai {reply.model}",
    )


def _ratings(job: Job, choice: Any) -> tuple[float, ...]:
    if job.method.mode != "logprob" or job.method.rubric is None:
        return ()
    content = choice.logprobs.content if choice.logprobs else None
    if not content or not content[0].top_logprobs:
        raise ConfigError(
            f"{job.served.name}: the endpoint {job.served.base_url} gives no log-probabilities (top_logprobs). Set "
            "judging.mode=structured, which reads a JSON answer instead."
        )
    return score_logprobs([(t.token, t.logprob) for t in content[0].top_logprobs], job.method.rubric.scale)


def score_logprobs(top: Sequence[tuple[str, float]], scale: Sequence[int]) -> tuple[float, ...]:
    """Log-probability of each score; -inf for one that is not among the likeliest tokens. ` 5` counts as `5`."""
    found = []
    for score in scale:
        same = [math.exp(logprob) for token, logprob in top if token.strip() == str(score)]
        found.append(math.log(sum(same)) if sum(same) > 0 else -math.inf)
    return tuple(found)
