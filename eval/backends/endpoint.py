"""Calls to an OpenAI-compatible endpoint. The key comes from the environment and goes nowhere but to the endpoint."""

from __future__ import annotations

import base64
import json
import math
import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dpeer.errors import ClusterError, ConfigError, Interrupted
from dpeer.eval.backends.config import Farm, Served
from dpeer.eval.backends.registry import BACKENDS
from dpeer.eval.backends.types import Answer, Answers, Backend, Call, Job, Say, messages, refused
from dpeer.eval.questions.readout import json_schema
from dpeer.eval.store.parts import content_id

if TYPE_CHECKING:
    import openai

AT_ONCE = 32
"""Most requests under way; engine.max_num_seqs may lower it."""
BATCH, BATCH_S = 64, 10.0
"""Answers that are handed out, and so written, together; fewer when the first of them has waited so long (seconds)."""
TIMEOUT_S = 300.0
"""Longest wait for one reply; farm.timeout_s may lower it."""
RETRIES, TIMEOUTS = 6, 2
"""Times that a lost connection or a fault of the server (408, 409, 5xx), and that silence, is borne with."""
PATIENCE_S = 900.0
"""An endpoint that is busy (429) is asked again for so long after its last answer."""
LONGEST_PAUSE_S = 60.0
GIVE_UP = 20
"""Conversations in a row that the endpoint refuses before the fault is taken to be the recipe's, not the texts'."""
SECRET_FROM = 8
"""Characters from which a key is a secret: local servers are given stand-ins such as `none`, which are words too."""
TOP = 20
"""Most log-probabilities that the protocol lets us ask for."""


class OpenAI(Backend):
    """Any OpenAI-compatible endpoint: its address and the name that it knows are all that is known of the model."""

    def check(self, served: Served) -> None:
        if not served.base_url:
            raise ConfigError("backend openai needs base_url, the address of the endpoint")

    def identity(self, served: Served) -> str:
        return content_id(base_url=served.base_url, path=served.path, revision=served.revision)

    def session(self, farm: Farm, say: Say) -> AbstractContextManager[Answers]:
        return nullcontext(partial(answers, timeout_s=min(TIMEOUT_S, farm.timeout_s)))


BACKENDS.register("openai", OpenAI())


def answers(job: Job, calls: Iterable[Call], timeout_s: float = TIMEOUT_S) -> Iterator[list[Answer]]:
    """Answers as they come, in batches. A request that the endpoint refuses becomes an error answer.

    Raises ClusterError when the endpoint cannot be reached, refuses the key, the model or everything, or stays busy,
    and ConfigError when it gives no log-probabilities though they are asked for: every further call would fail the
    same way. What was answered before, and before Ctrl-C, is handed out first.
    """
    endpoint = _Endpoint(job, timeout_s)
    source = iter(calls)
    asked: SimpleQueue[Call | None] = SimpleQueue()
    came: SimpleQueue[Answer | Exception] = SimpleQueue()
    finished: list[Answer] = []
    under_way, handed = 0, time.monotonic()
    try:
        for call in islice(source, min(AT_ONCE, job.settings.max_num_seqs)):
            asked.put(call)
            # A daemon: no interrupted program waits for a reply that may take minutes, or never come.
            Thread(target=_serve, args=(endpoint, asked, came), daemon=True).start()
            under_way += 1
        while under_way:
            for reply in _arrived(came):
                under_way -= 1
                if isinstance(reply, Exception):
                    raise reply
                finished.append(reply)
                for call in islice(source, 1):
                    asked.put(call)
                    under_way += 1
            if len(finished) >= BATCH or (finished and time.monotonic() - handed >= BATCH_S):
                handed = time.monotonic()
                batch, finished = finished, []
                yield batch
    except (Exception, KeyboardInterrupt, Interrupted):
        finished += [reply for reply in _arrived(came, 0) if isinstance(reply, Answer)]
        if finished:
            yield finished
        raise
    finally:
        for _ in range(AT_ONCE):
            asked.put(None)
    if finished:
        yield finished


def _arrived(came: SimpleQueue[Answer | Exception], wait_s: float = 1.0) -> list[Answer | Exception]:
    """What has come, after waiting a moment for the first."""
    replies = []
    try:
        replies.append(came.get(timeout=wait_s) if wait_s else came.get_nowait())
        while True:
            replies.append(came.get_nowait())
    except Empty:
        return replies


def _serve(endpoint: _Endpoint, asked: SimpleQueue[Call | None], came: SimpleQueue[Answer | Exception]) -> None:
    while (call := asked.get()) is not None:
        try:
            came.put(endpoint.ask(call))
        except Exception as error:
            came.put(error)
            return


class _Endpoint:
    """One endpoint and how it has been doing; `ask` may be called from many threads."""

    def __init__(self, job: Job, timeout_s: float) -> None:
        import openai

        self.job, self.lock = job, Lock()
        self.key = _key(job)
        self.client = openai.OpenAI(
            base_url=job.served.base_url, api_key=self.key or "none", timeout=timeout_s, max_retries=0
        )
        self.answered = False
        self.last = time.monotonic()
        self.refused: set[str] = set()

    def ask(self, call: Call) -> Answer:
        """The endpoint's answer. Raises ClusterError or ConfigError where no other call would fare better."""
        import openai

        began, attempt = time.monotonic(), 0
        while True:
            try:
                reply = self.client.chat.completions.create(**_request(self.job, call))
                answer = self._redacted(self._answer(call, reply))
            except openai.OpenAIError as error:
                pause = self._pause(error, attempt, began)
                if pause is None:
                    return self._fault(call, error)
                time.sleep(pause)
                attempt += 1
                continue
            if answer.finish != "error":
                with self.lock:
                    self.answered, self.last = True, time.monotonic()
                    self.refused.clear()
            return answer

    def _pause(self, error: Exception, attempt: int, began: float) -> float | None:
        """Seconds to wait before the same request is sent again; None: not again."""
        import openai

        backoff = min(0.5 * 2.0**attempt, LONGEST_PAUSE_S) * random.uniform(0.75, 1)
        if isinstance(error, openai.RateLimitError):
            waited = time.monotonic() - max(began, self.last)
            if error.code == "insufficient_quota" or waited > PATIENCE_S:
                return None
            return max(backoff, _retry_after(error))
        if isinstance(error, openai.APITimeoutError):
            return backoff if attempt + 1 < TIMEOUTS else None
        status = error.status_code if isinstance(error, openai.APIStatusError) else 0
        passing = isinstance(error, openai.APIConnectionError) or status in (408, 409) or status >= 500
        return min(backoff, 8.0) if passing and attempt < RETRIES else None

    def _fault(self, call: Call, error: Any) -> Answer:
        import openai

        if isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APITimeoutError):
            raise self._stopped(f"cannot be reached ({self._without_key(error.__cause__ or error)})")
        status, message = getattr(error, "status_code", None), self._without_key(getattr(error, "message", error))
        if status in (401, 402, 404, 429) or (status == 403 and not self.answered):
            raise self._stopped(f"answers {status} ({message}){self._key_hint() if status in (401, 403) else ''}")
        code = getattr(error, "code", None)
        if status == 413 or code == "context_length_exceeded" or "maximum context length" in message:
            return Answer(call.id, "too_long", error=message)
        with self.lock:
            self.refused.add(call.conversation)
            if len(self.refused) > GIVE_UP:
                raise self._stopped(f"refuses every request: more than {GIVE_UP} conversations in a row ({message})")
        return refused(call, message, None, None)

    def _answer(self, call: Call, reply: Any) -> Answer:
        if not hasattr(reply, "choices"):
            raise self._stopped("gives no chat completion; base_url usually ends with /v1")
        if not reply.choices:
            return refused(call, "the endpoint gave no choices", None, None)
        choice, usage = reply.choices[0], reply.usage
        details = usage.prompt_tokens_details if usage else None
        finish = {"length": "length"}.get(choice.finish_reason, "stop" if choice.finish_reason in STOPS else "error")
        error = None if finish != "error" else f"the endpoint ended the answer with {choice.finish_reason}"
        logprobs = _ratings(self.job, choice) if finish != "error" else ()
        if logprobs is None:
            if not self.answered:
                raise ConfigError(
                    f"{self.job.served.name}: the endpoint {self.job.served.base_url} gives no log-probabilities "
                    "(top_logprobs). Set judging.mode=structured, which reads a JSON answer instead."
                )
            finish, logprobs, error = "error", (), "the endpoint gave no log-probabilities for this answer"
        return Answer(
            call.id,
            finish,
            choice.message.content or "",
            logprobs,
            error=error,
            prompt_tokens=usage.prompt_tokens if usage else None,
            cached_tokens=details.cached_tokens if details else None,
            output_tokens=usage.completion_tokens if usage else 0,
            engine=f"openai {reply.model}",
        )

    def _redacted(self, answer: Answer) -> Answer:
        """Some servers echo the request's headers."""
        text, error, engine = (v and without_key(v, self.key) for v in (answer.text, answer.error, answer.engine))
        return replace(answer, text=text or "", error=error, engine=engine)

    def _without_key(self, text: object) -> str:
        """The beginning of what a message says, without the key."""
        return without_key(str(text), self.key)[:300]

    def _key_hint(self) -> str:
        name = self.job.served.api_key_env
        return f"; the key is read from {name}" if self.key else f"; the environment variable {name} holds no key"

    def _stopped(self, what: str) -> ClusterError:
        return ClusterError(
            f"{self.job.served.name}: the endpoint {self.job.served.base_url} {what}. What was finished is saved: put "
            "it right and run the same command again."
        )


STOPS = ("stop", "eos", "eos_token", "end_turn", "stop_sequence")
"""Names that servers give to the natural end of an answer."""


def _key(job: Job) -> str:
    key = (os.environ.get(job.served.api_key_env) or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"{job.served.name}: the environment variable {job.served.api_key_env} holds characters that no key has "
            "(a line break, or a letter beyond ASCII). Copy the key again."
        )
    return key


def without_key(text: str, key: str) -> str:
    """The text with <key> in place of the key, also where that is quoted for JSON or an address, or in base64."""
    if len(key) < SECRET_FROM:
        return text
    encoded = [base64.b64encode(form.encode()).decode().rstrip("=") for form in (key, f":{key}")]
    for form in sorted({key, json.dumps(key)[1:-1], quote(key), quote(key, safe=""), *encoded}, key=len, reverse=True):
        text = text.replace(form, "<key>")
    return text


def _retry_after(error: openai.RateLimitError) -> float:
    try:
        return min(max(float(error.response.headers["retry-after"]), 0.0), LONGEST_PAUSE_S)
    except (KeyError, ValueError):
        return 0.0


def _request(job: Job, call: Call) -> dict[str, Any]:
    method = job.method
    request: dict[str, Any] = {
        "model": job.served.path,
        "messages": messages(call, method),
        "max_tokens": method.max_tokens,
        "temperature": method.temperature,
        "top_p": method.top_p,
        "seed": None if call.seed is None else call.seed % 2**31,  # some servers take no more
    }
    if method.mode == "logprob":
        request |= {"logprobs": True, "top_logprobs": TOP}
    elif method.mode == "structured" and method.rubric:
        schema = {"name": "rating", "strict": True, "schema": json_schema(method.rubric)}
        request["response_format"] = {"type": "json_schema", "json_schema": schema}
    return request


def _ratings(job: Job, choice: Any) -> tuple[float, ...] | None:
    """Log-probability of each score where they are asked for; None: the endpoint gave none."""
    if job.method.mode != "logprob" or job.method.rubric is None:
        return ()
    content = choice.logprobs.content if choice.logprobs else None
    if not content or not content[0].top_logprobs:
        return None
    return score_logprobs([(t.token, t.logprob) for t in content[0].top_logprobs], job.method.rubric.scale)


def score_logprobs(top: Sequence[tuple[str, float]], scale: Sequence[int]) -> tuple[float, ...]:
    """Log-probability of each score; -inf for one that is not among the likeliest tokens. ` 5` counts as `5`."""
    logprobs = []
    for score in scale:
        same = [math.exp(logprob) for token, logprob in top if token.strip() == str(score)]
        logprobs.append(math.log(sum(same)) if sum(same) > 0 else -math.inf)
    return tuple(logprobs)
