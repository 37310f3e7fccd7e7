"""What a task elsewhere runs beside the plug-in itself: items from its file, prompts of judges, scores, means.

All of it is cut out and written into the task, so it needs nothing but Python; see `cut`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from dpeer.eval.bench.benchmark import Answers, Benchmark, Item, Judged, Scores, Values
from dpeer.eval.questions.conversations import conversation, messages_of, so_far, written
from dpeer.eval.questions.prompting import chat_messages, judge_segments
from dpeer.eval.questions.readout import read_structured
from dpeer.eval.questions.rubric import Rubric
from dpeer.eval.questions.shown import Shown, rated_messages

Asked = tuple[tuple[str, str], str]
"""(key of a judged text, dimension), and a prompt."""


def items_in(path: Path) -> list[Item]:
    """Items of a file that `export` wrote."""
    with path.open(encoding="utf-8") as file:
        return [Item(**json.loads(line)) for line in file if line.strip()]


def values_of(benchmark: Benchmark, item: Item, answers: Answers, scores: Scores | None = None) -> Values:
    """What the item says of each metric: by the scores of a judge, or by the rule."""
    return benchmark.score(item, answers, benchmark.rule(item, answers) if scores is None else scores)


def judge_prompts(rubric: Rubric, judged: Sequence[Judged]) -> Iterator[Asked]:
    """What a judge is asked, a prompt per text, dimension and criterion."""
    for text in judged:
        transcript = written(so_far(text.prompt, [*text.before, text.response])) if conversation(text.prompt) else None
        shown = Shown(rated_messages(text.prompt, transcript, False), reference=text.reference)
        for dimension in text.dimensions:
            for criterion in rubric.dimension(dimension).criteria:
                segments = judge_segments(
                    rubric, text.prompt, text.response, dimension, criterion, "up", "structured", shown
                )
                yield (text.key, dimension), chat_messages(segments)[0]["content"]


def scores_in(asked: Sequence[Asked], told: Sequence[str], scale: Sequence[int]) -> Scores | None:
    """Means over criteria of what a judge told. None where one of its answers cannot be read: the item is left out."""
    found: dict[tuple[str, str], list[int]] = {}
    for (key, _), text in zip(asked, told, strict=True):
        score = read_structured(text, None, scale).score
        if score is None:
            return None
        found.setdefault(key, []).append(score)
    return {key: fmean(scores) for key, scores in found.items()}


def mean_of(values: Sequence[float]) -> float:
    """Over what is informed: nan stands for what is not."""
    known = [v for v in values if not math.isnan(v)]
    return fmean(known) if known else math.nan


def rate_of(benchmark: Benchmark, metric: str, asked: Sequence[Mapping[str, Any]]) -> float:
    """Mean over items of a metric, by the rule, from the answers to all asks: {item (its JSON), ask, answer} each."""
    answers: dict[str, dict[str, tuple[str, ...]]] = {}
    for one in asked:
        answers.setdefault(one["item"], {})[one["ask"]] = (one["answer"],)
    said = []
    for text, own in answers.items():
        item = Item(**json.loads(text))
        if len(own) == len(item.asks):  # else a part of the item was left out, by a limit on prompts
            said.append(values_of(benchmark, item, {ask: own[ask] for ask in item.asks}).get(metric, math.nan))
    return mean_of(said)


def as_json(item: Item) -> dict[str, Any]:
    return {"id": item.id, "asks": item.asks, "cluster": item.cluster, "group": item.group, "facts": item.facts}


def first_prompt(item: Item) -> str:
    """What is shown of an item in a list."""
    return next((m.content for m in messages_of(next(iter(item.asks.values()))) if m.role == "user"), "")
