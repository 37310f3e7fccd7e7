"""What a backend is, what it is asked and what it answers. Nothing here needs torch, ray or vllm."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from dpeer.eval.backends.config import Engine, Farm, Served
from dpeer.eval.backends.families import family_of_name
from dpeer.eval.questions.prompting import Segment, chat_messages
from dpeer.eval.questions.rubric import Rubric

Device = Literal["cpu", "gpu"]


@dataclass(frozen=True, slots=True)
class Call:
    """One request. Calls of one conversation begin with the same tokens and stand side by side."""

    id: str
    conversation: str
    segments: tuple[Segment, ...]
    system: str | None = None
    seed: int | None = None
    history: tuple[tuple[str, str], ...] = ()
    """(role, text) of the messages before the one that the segments make up; free answers only."""


@dataclass(frozen=True, slots=True)
class Method:
    """How a model is asked: for the log-probability of each rating, for JSON, or for a free answer."""

    mode: Literal["logprob", "structured", "sample"]
    max_tokens: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    rubric: Rubric | None = None
    choices: tuple[str, ...] = ()
    """What a judge that compares answers with; empty: the scores of the rubric."""


@dataclass(frozen=True, slots=True)
class Job:
    """A model, how its engine is set up, and how it is asked."""

    served: Served
    settings: Engine
    method: Method
    device: Device = "cpu"
    """Where vLLM runs; other backends take no notice."""
    count: int = 0
    """Calls of this job, where that is known."""
    pending: frozenset[str] | None = None
    """Ids of these calls; None: not known."""
    proven: bool = False
    """Whether the model has given usable answers in an earlier run: refusals are then the texts' fault."""
    memory: Path | None = None
    """File in which a backend may keep what a later run of the same job must know; None: nowhere."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for a call.

    finish: stop, length (cut), refusal (`text` is what the model said instead), too_long (never sent), filtered (by a
    filter before or behind the model) or error; `error` says more of the last three. thoughts: what a reasoning model
    said before its answer, which is no part of `text`.
    """

    id: str
    finish: str
    text: str = ""
    logprobs: tuple[float, ...] = ()
    error: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int = 0
    engine: str | None = None
    thoughts: str | None = None
    thought_tokens: int | None = None
    eager: bool | None = None
    """vLLM: whether it ran without compiled code, which rounds differently."""


class Useless(BaseException):
    """Thrown into the iterator of a session's answers: what it handed out is of no use, and is asked for again."""


Answers = Callable[[Job, Iterable[Call]], Iterator[list[Answer]]]
"""Answers the calls of a job, in batches as they come; each call once, in any order."""
Say = Callable[[str], None]
"""Shows a person one line."""


class Backend(Protocol):
    """A way to have models answer. One object serves all models that name it, so it holds no state of a run.

    A subclass gives `identity` and `session`; the rest has defaults that fit a server which tokenises by itself.
    """

    needs_ray: bool = False
    """Whether a Ray cluster must be connected before a session begins."""
    writes_prompts: bool = False
    """Whether it applies the chat template: the text of an answer then holds the mark by which the prompt opens
    thoughts."""

    def check(self, served: Served) -> None:
        """Raises ConfigError where a setting that this backend needs is missing. Reads nothing but the config."""
        return None

    @abstractmethod
    def identity(self, served: Served) -> str:
        """A hash of what answers: the weights, or the address and name of an endpoint. Rows' ids depend on it."""

    def conditions(self, served: Served, settings: Engine) -> dict[str, Any]:
        """What else answers depend on, JSON-safe. Rows' ids depend on it; `dtype` and `batch_invariant` are columns."""
        return {}

    def family(self, served: Served) -> str | None:
        """The model's family where the config gives none; None: unknown."""
        return family_of_name(served.path) or family_of_name(served.name)

    def tokenizer(self, served: Served) -> Any | None:
        """The tokenizer, to count what a plan costs; None where the server tokenises or it is not on this machine."""
        return None

    @abstractmethod
    def session(self, farm: Farm, say: Say) -> AbstractContextManager[Answers]:
        """What answers the jobs of one run, one model after another; leaving it gives back what it holds.

        A call that cannot be answered is an Answer with finish `error` or `too_long`. ClusterError or ConfigError:
        no further call would fare better; what was answered before is handed out first.
        """


def messages(call: Call, method: Method) -> list[dict[str, str]]:
    """A call as chat messages."""
    if method.mode != "sample":
        return chat_messages(call.segments)
    system = [{"role": "system", "content": call.system}] if call.system else []
    history = [{"role": role, "content": text} for role, text in call.history]
    return [*system, *history, {"role": "user", "content": "".join(s.text for s in call.segments)}]


def refused(call: Call, message: str, tokens: int | None, engine: str | None) -> Answer:
    return Answer(call.id, "error", error=message.strip()[:500] or "no message", prompt_tokens=tokens, engine=engine)


def characters(call: Call) -> int:
    told = sum(len(text) for _, text in call.history)
    return sum(len(segment.text) for segment in call.segments) + len(call.system or "") + told
