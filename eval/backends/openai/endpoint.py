"""Calls to an OpenAI-compatible endpoint, many requests at once."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any

from dpeer.errors import ConfigError, Interrupted
from dpeer.eval.backends.config import Engine, Farm, Served
from dpeer.eval.backends.openai.client import Client, Unreachable, lowered
from dpeer.eval.backends.openai.faults import Fault
from dpeer.eval.backends.openai.parameters import Dialect, adapted, body, changes, lacks_logprobs
from dpeer.eval.backends.openai.replies import Reply, parse
from dpeer.eval.backends.openai.secrets import without_secrets
from dpeer.eval.backends.registry import BACKENDS
from dpeer.eval.backends.types import Answer, Answers, Backend, Call, Job, Say, refused
from dpeer.eval.store.parts import content_id

AT_ONCE = 32
"""Most requests under way; engine.max_num_seqs may lower it."""
BATCH, BATCH_S = 64, 10.0
"""Answers that are handed out, and so written, together; fewer when the first of them has waited so long (seconds)."""
TIMEOUT_S = 300.0
"""Longest wait for one reply; farm.timeout_s may lower it."""
RETRIES, TIMEOUTS, EMPTIES = 6, 2, 2
"""Times that a lost connection or a fault of the server (408, 409, 5xx), silence, and a reply without an answer are
borne with."""
PATIENCE_S = 900.0
"""An endpoint that is busy (429) is asked again for so long after its last answer."""
LONGEST_PAUSE_S = 60.0
GIVE_UP = 20
"""Conversations in a row that the endpoint refuses before the fault is taken to be the recipe's, not the texts'."""
MUTE = 4
"""Answers without log-probabilities, and none with them, after which an endpoint is taken to give none."""
HOPELESS = ("credit", "key", "absent", "stranger", "busy")
"""Faults that every further request would meet."""


class OpenAI(Backend):
    """Any OpenAI-compatible endpoint: its address and the name that it knows are all that is known of the model."""

    def check(self, served: Served) -> None:
        if not served.base_url:
            raise ConfigError(f"backend {served.backend} needs base_url, the address of the endpoint")

    def identity(self, served: Served) -> str:
        return content_id(base_url=served.base_url, path=served.path, revision=served.revision)

    def conditions(self, served: Served, settings: Engine) -> dict[str, Any]:
        own = {"request": served.request, "reasoning_budget": served.reasoning_budget}
        return {name: value for name, value in own.items() if value}

    def session(self, farm: Farm, say: Say) -> AbstractContextManager[Answers]:
        return nullcontext(partial(answers, timeout_s=min(TIMEOUT_S, farm.timeout_s), say=say))


BACKENDS.register("openai", OpenAI())


def _silent(line: str) -> None:
    """For callers without a screen."""


def answers(
    job: Job, calls: Iterable[Call], timeout_s: float = TIMEOUT_S, say: Say = _silent
) -> Iterator[list[Answer]]:
    """Answers as they come, in batches. A request that the endpoint refuses becomes an error answer.

    Raises ClusterError when the endpoint cannot be reached, refuses the key, the model or everything, or stays busy,
    and ConfigError when it gives no log-probabilities though they are asked for: every further call would fail the
    same way. What was answered before, and before Ctrl-C, is handed out first.
    """
    endpoint = Endpoint(job, timeout_s, say)
    source = iter(calls)
    asked: SimpleQueue[Call | None] = SimpleQueue()
    came: SimpleQueue[Answer | Exception] = SimpleQueue()
    finished: list[Answer] = []
    under_way, threads, handed = 0, 0, time.monotonic()
    most = min(AT_ONCE, job.settings.max_num_seqs)
    try:
        while True:
            for call in islice(source, most - under_way):
                asked.put(call)
                under_way += 1
                if under_way > threads:
                    # A daemon: no interrupted program waits for a reply that may take minutes, or never come.
                    Thread(target=_serve, args=(endpoint, asked, came), daemon=True).start()
                    threads += 1
            if not under_way:
                if not finished:
                    return
                batch, finished = finished, []
                yield batch  # what these cost may leave room for more calls
                continue
            for reply in _arrived(came):
                under_way -= 1
                if isinstance(reply, Exception):
                    raise reply
                finished.append(reply)
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


def _arrived(came: SimpleQueue[Answer | Exception], wait_s: float = 1.0) -> list[Answer | Exception]:
    """What has come, after waiting a moment for the first."""
    replies = []
    try:
        replies.append(came.get(timeout=wait_s) if wait_s else came.get_nowait())
        while True:
            replies.append(came.get_nowait())
    except Empty:
        return replies


def _serve(endpoint: Endpoint, asked: SimpleQueue[Call | None], came: SimpleQueue[Answer | Exception]) -> None:
    while (call := asked.get()) is not None:
        try:
            came.put(endpoint.ask(call))
        except Exception as error:
            came.put(error)
            return


class Endpoint:
    """One endpoint and how it has been doing; `ask` may be called from many threads."""

    def __init__(self, job: Job, timeout_s: float, say: Say = _silent) -> None:
        self.job, self.say, self.lock = job, say, Lock()
        self.client = Client(job.served, timeout_s)
        self.dialect = Dialect()
        self.answered = False
        self.silent_answers = 0
        self.last = time.monotonic()
        self.refused: set[str] = set()

    def ask(self, call: Call) -> Answer:
        """The endpoint's answer. Raises ClusterError or ConfigError where no other call would fare better."""
        began, attempt = time.monotonic(), 0
        while True:
            dialect = self.dialect
            sent = body(self.job, call, dialect)
            came = self._sent(sent)
            if isinstance(came, Reply):
                return self.answer(call, came)
            if isinstance(came, Fault) and self.adapts(dialect, came, sent):
                continue
            pause = self._pause(came, attempt, began)
            if pause is None:
                return self.fault(call, came, sent)
            time.sleep(pause)
            attempt += 1

    def _sent(self, request: dict[str, Any]) -> Reply | Fault | Unreachable:
        try:
            reply = self.client.send("POST", "/chat/completions", json=request)
        except Unreachable as error:
            return error
        return parse(reply.status_code, lowered(reply.headers), reply.content)

    def adapts(self, dialect: Dialect, fault: Fault, sent: dict[str, Any]) -> bool:
        """Whether the request is worth sending again in another form, now that this one is refused."""
        with self.lock:
            if self.dialect != dialect:  # another thread has learnt it
                return fault.kind == "refused"
            learnt = adapted(dialect, fault, sent, self.job.served.request)
            if learnt is None:
                return False
            self.dialect = learnt
        self.say(
            f"{self.job.served.name}: the endpoint does not take a request as it was sent "
            f"({self.client.clean(fault.message)}). From now on: {changes(dialect, learnt)}."
        )
        return True

    def _pause(self, fault: Fault | Unreachable, attempt: int, began: float) -> float | None:
        """Seconds to wait before the same request is sent again; None: not again."""
        backoff = min(0.5 * 2.0**attempt, LONGEST_PAUSE_S) * random.uniform(0.75, 1)
        if isinstance(fault, Unreachable):
            borne = TIMEOUTS - 1 if fault.silent else RETRIES
            return min(backoff, 8.0) if attempt < borne else None
        if fault.kind == "busy":
            waited = time.monotonic() - max(began, self.last)
            return None if waited > PATIENCE_S else max(backoff, fault.pause_s)
        passing = fault.kind == "passing" or (fault.kind == "stranger" and self.answered)
        borne = RETRIES if passing else EMPTIES if fault.kind == "empty" else 0
        return max(min(backoff, 8.0), fault.pause_s) if attempt < borne else None

    def fault(self, call: Call, fault: Fault | Unreachable, sent: dict[str, Any]) -> Answer:
        """The row of a call that has no answer. Raises where no other call would have one."""
        message = self.client.clean(fault.message if isinstance(fault, Fault) else fault)
        if isinstance(fault, Unreachable):
            if not fault.silent:
                raise self.client.stopped(f"cannot be reached ({message})")
        elif fault.kind in HOPELESS and not (self.answered and fault.status in (200, 403) and fault.kind != "credit"):
            raise self.client.refuses(fault)
        elif fault.kind in ("too_long", "filtered"):
            return Answer(call.id, fault.kind, error=message)
        elif self.job.method.mode == "logprob" and lacks_logprobs(fault, sent):
            raise self.client.mute()
        with self.lock:
            self.refused.add(call.conversation)
            if len(self.refused) > GIVE_UP and not self.job.proven:
                raise self.client.stopped(
                    f"refuses every request: more than {GIVE_UP} conversations in a row ({message})"
                )
        return refused(call, message, None, None)

    def answer(self, call: Call, reply: Reply) -> Answer:
        """A reply as an answer, without secrets: some servers echo the request's headers."""
        finish, error = reply.finish, reply.error
        logprobs: tuple[float, ...] = ()
        if self.job.method.mode == "logprob" and finish in ("stop", "length"):
            finish, error, logprobs = self._rated(reply)
        if finish not in ("error", "filtered"):
            with self.lock:
                self.answered, self.last = True, time.monotonic()
                self.refused.clear()
        text, thoughts, error, model = (
            v and without_secrets(v, self.client.key) for v in (reply.text, reply.thoughts, error, reply.model)
        )
        return Answer(
            call.id,
            finish,
            text or "",
            logprobs,
            error=error,
            prompt_tokens=reply.prompt_tokens,
            cached_tokens=reply.cached_tokens,
            output_tokens=reply.output_tokens or 0,
            engine=f"openai {model or self.job.served.path}",
            thoughts=thoughts,
            thought_tokens=reply.thought_tokens,
        )

    def _rated(self, reply: Reply) -> tuple[str, str | None, tuple[float, ...]]:
        """(finish, error, log-probability of each score) of a reply from which log-probabilities are read."""
        if reply.top:
            method = self.job.method
            answers = method.choices or (method.rubric.scale if method.rubric else ())
            return reply.finish, None, score_logprobs(reply.top, answers)
        with self.lock:
            self.silent_answers += 1
            if not self.answered and self.silent_answers >= MUTE:
                raise self.client.mute()
        return "error", "the endpoint gave no log-probabilities for this answer", ()


def score_logprobs(top: Sequence[tuple[str, float]], scale: Sequence[int] | Sequence[str]) -> tuple[float, ...]:
    """Log-probability of each score or choice; -inf for one that is not among the likeliest tokens. ` 5` counts as `5`,
    also where blanks are shown as the vocabulary's marks for them."""
    logprobs = []
    for score in scale:
        same = [math.exp(logprob) for token, logprob in top if token.translate(_MARKS).strip() == str(score)]
        logprobs.append(math.log(sum(same)) if sum(same) > 0 else -math.inf)
    return tuple(logprobs)


_MARKS = str.maketrans({"\u2581": " ", "\u0120": " ", "\u010a": "\n", "\u0109": "\t"})
"""Sentencepiece's blank, and byte-level BPE's blank, newline and tab."""
