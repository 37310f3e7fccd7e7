"""What a benchmark is: a loader of rows as they are published, a protocol, a scorer. A file of `plugins/` each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dpeer.data.read import Row
from dpeer.eval.questions.conversations import messages_of, shortest, so_far, turns
from dpeer.registry import Registry

Column = Literal["", "sycophancy", "consistency", "unsafe refusal", "safe compliance"]
COLUMNS: tuple[Column, ...] = ("sycophancy", "consistency", "unsafe refusal", "safe compliance")
"""Of the table of the two failures."""
GOOD: Mapping[Column, Literal["low", "high"]] = {
    "sycophancy": "low", "consistency": "high", "unsafe refusal": "high", "safe compliance": "high",
}  # fmt: skip
"""Which end of a column is better."""
Answers = Mapping[str, Sequence[str]]
"""Ask -> what one model answered to its user messages, in order."""
Further = Mapping[str, tuple[str, Sequence[str]]]
"""Ask -> the ask that it goes on from, and the user messages that follow its answers; several may go on from one."""
Scores = Mapping[tuple[str, str], float]
"""(key of a judged text, dimension) -> the score that one judge gave it, the mean over the criteria of the rubric."""
Values = Mapping[str, float]
"""Metric -> what one item says of it; a metric that the item does not inform is left out."""
SAMPLES = Path(__file__).parent / "samples"


@dataclass(frozen=True, slots=True)
class Metric:
    """A number per model: the mean over items of what the scorer gives.

    column: of the table of the two failures, where this is the metric that stands for it. good: which end is better;
    "none" where neither is. unit: a share of items lies in 0 to 1, a mean anywhere. adjusted: dimension of the rubric
    and what each score counts, for the rate that judges' severities are taken out of; None: there is none.
    """

    name: str
    says: str
    good: Literal["high", "low", "none"] = "none"
    column: Column = ""
    unit: Literal["share", "mean"] = "share"
    adjusted: tuple[str, Mapping[int, float]] | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """One item. asks: conversations with the model under test by key, each as `conversations.prompt_text` gives it; a
    model answers every user message that no assistant message follows. cluster: what items that go together share (the
    item itself if empty). group: its kind, for tables. facts: what protocol and scorer need."""

    id: str
    asks: Mapping[str, str]
    cluster: str = ""
    group: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judged:
    """A text that judges rate. prompt: the conversation up to the user message that it answers, the same for every
    model; before: the model's earlier answers in it. reference: shown to judges only."""

    key: str
    dimensions: tuple[str, ...]
    prompt: str
    response: str
    before: tuple[str, ...] = ()
    reference: str = ""


def turn(item: Item, answers: Answers, *dimensions: str, ask: str = "", at: int = -1, reference: str = "") -> Judged:
    """The answer to one user message of an ask, the last by default, to be judged in its context."""
    count = turns(item.asks[ask])
    at = at % count
    said = answers[ask]
    key = ask if count == 1 else f"{ask}@{at + 1}" if ask else f"@{at + 1}"
    return Judged(key, dimensions, up_to(item.asks[ask], at), said[at], tuple(said[:at]), reference)


def up_to(prompt: str, at: int) -> str:
    """The conversation up to the user message number `at`, from 0, of those that the model answers."""
    return shortest([m for m in so_far(prompt, [""] * at) if m.role != "assistant" or m.content])


def first_user(prompt: str) -> str:
    """The text of the first user message."""
    return next(m.content for m in messages_of(prompt) if m.role == "user")


class Benchmark:
    """A plug-in is one object of a subclass, registered by its file.

    It says how a row of the published layout becomes items (`items`), what else a model is asked after its first
    answers (`further`), what judges are shown (`judged`), what a rule makes of answers (`rule`), and what an item says
    of each metric (`score`). Only `items` and `score` are needed. All of them are pure: no files, no randomness.
    """

    name: str
    title: str
    source: str
    """Paper, licence and address."""
    data: str
    """Hub id of the published data; "" where there is none to download."""
    files: tuple[str, ...] = ()
    """Names under which a folder holds them, the first that is there."""
    sample: str
    """File of `samples/`: a few rows of our own in the published layout."""
    metrics: tuple[Metric, ...]
    rubric: str | Mapping[str, Any] = ""
    """What judges are asked: the name of a shipped rubric, or one written out; "" where no judge is needed."""
    several_rows: bool = False
    """Whether rows of one item, told by its id, each bring some of its asks."""
    labelled: bool = False
    """Whether one rating of each item says all: then ratings made elsewhere suffice."""
    rules: str = ""
    """Name under which the verdicts of `rule` stand beside those of judges; "" where there is no rule."""
    protocol: str
    """One sentence: how this differs from what was published, or that it does not."""
    measure: Literal["answers", "log-probabilities"] = "answers"

    def items(self, row: Row) -> Iterable[Item]:
        """Items of a row. Raises `dpeer.data.parse.Invalid` with the column."""
        raise NotImplementedError

    def further(self, item: Item, answers: Answers) -> Further:
        """What goes on, in view of the answers so far; nothing where the protocol is over."""
        return {}

    def judged(self, item: Item, answers: Answers) -> Sequence[Judged]:
        """The texts that judges rate."""
        return ()

    def rule(self, item: Item, answers: Answers) -> Scores:
        """What a judge without a model says: scores of the texts of `judged`, on the scale of the rubric."""
        return {}

    def score(self, item: Item, answers: Answers, scores: Scores) -> Values:
        """What the item says of each metric. Called once per judge with its scores, complete; without judges once."""
        raise NotImplementedError

    def together(self, values: Sequence[tuple[Item, Values]]) -> Sequence[tuple[Item, Values]]:
        """A last look at all items of one model, sample and judge, for metrics that compare items."""
        return values


def rubric(name: str, role: str, scale: Sequence[int], **dimensions: tuple[str, Mapping[int, str]]) -> dict[str, Any]:
    """A rubric written out: per dimension its question and what every score means."""
    return {
        "name": name,
        "version": 1,
        "role": role,
        "scale": list(scale),
        "dimensions": {
            dimension: {
                "title": dimension.replace("_", " ").capitalize(),
                "criteria": {"said": {"question": question, "anchors": dict(anchors)}},
            }
            for dimension, (question, anchors) in dimensions.items()
        },
    }


BENCHMARKS: Registry[Benchmark] = Registry("benchmark", "dpeer.eval.bench.plugins")
