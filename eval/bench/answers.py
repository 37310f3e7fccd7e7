"""Answers of the models under test: the asks of all benchmarks in one evaluation, then what a protocol asks in view of
the answers, model by model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from dpeer.data.schema import Message
from dpeer.errors import DataError
from dpeer.eval.bench.benchmark import Answers, Benchmark, Item
from dpeer.eval.bench.budget import left_of
from dpeer.eval.bench.config import BenchConfig
from dpeer.eval.config import EvalConfig, Served
from dpeer.eval.generate import generate
from dpeer.eval.questions.conversations import conversation, messages_of, prompt_text, so_far, turns
from dpeer.eval.responses import ID, planned_responses, responses_folder
from dpeer.eval.run import Connect
from dpeer.eval.store.parts import read_table
from dpeer.eval.store.schema import RESPONSES
from dpeer.files import write_text

MOST_STAGES = 20
Loaded = Mapping[str, tuple[Benchmark, Sequence[Item]]]
"""Name -> benchmark and its items."""
Key = tuple[str, str, int, str]
"""Benchmark, model, sample, item."""


@dataclass(slots=True)
class Said:
    """What models answered."""

    whole: dict[tuple[str, str, int], dict[str, Answers]] = field(default_factory=dict)
    """(benchmark, model, sample) -> item -> answers, of items without a failure."""
    failed: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(benchmark, model) -> items and samples of which an answer is missing."""
    cut: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(benchmark, model) -> answers that were cut, or follow one that was."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt of an evaluation. sample: None where the evaluation counts samples itself. after: the ask that it goes
    on from."""

    benchmark: str
    item: str
    ask: str
    sample: int | None
    prompt: str
    after: str = ""

    @property
    def id(self) -> str:
        parts = (self.benchmark, self.item, self.ask, "" if self.sample is None else f"sample-{self.sample}")
        return "/".join(part for part in parts if part)


@dataclass(slots=True)
class Talk:
    """A conversation so far: all of its messages, and which of them are the model's answers."""

    messages: tuple[Message, ...]
    answers: tuple[str, ...]

    def then(self, texts: Sequence[str]) -> str:
        told = [{"role": m.role, "content": m.content} for m in (*self.messages, *(Message("user", t) for t in texts))]
        return prompt_text(told, "prompt")


def first_asks(loaded: Loaded) -> list[Ask]:
    """All that is known before any model has answered."""
    return [
        Ask(name, item.id, ask, None, prompt)
        for name, (_, items) in loaded.items()
        for item in items
        for ask, prompt in item.asks.items()
    ]


def evaluation_of(cfg: BenchConfig, stage: str, asks: Sequence[Ask], models: Sequence[Served]) -> EvalConfig:
    """The evaluation in which these models answer these asks; its file of prompts is written."""
    texts = {ask.id: ask.prompt for ask in asks}
    if len(texts) < len(asks):
        seen: Counter[str] = Counter(ask.id for ask in asks)
        twice = next(i for i, n in seen.items() if n > 1)
        raise DataError(f"two items would be asked under the name {twice!r}; rename one of them")
    path = cfg.folder / stage / "prompts.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"item": i, "prompt": p}, ensure_ascii=False) + "\n" for i, p in texts.items())
    write_text(path, "".join(lines))
    spec = cfg.generation if asks[0].sample is None else cfg.generation.model_copy(update={"samples": 1})
    budget = left_of(cfg, stage)
    prompts = {"path": str(path), "id": "item"}
    return cfg.evaluation(stage, prompts=prompts, models=tuple(models), generation=spec, budget=budget)


def ask_all(cfg: BenchConfig, loaded: Loaded, connect: Connect, retry_errors: bool, console: Console) -> Said:
    """All answers of all models; what is on disk is not asked again.

    Raises ClusterError where a model gives no usable answer at all, or the engines cannot be had.
    """
    items = {name: {item.id: item for item in listed} for name, (_, listed) in loaded.items()}
    said, talks, failed = Said(), dict[Key, dict[str, Talk]](), set[Key]()

    def answer(stage: str, asks: Sequence[Ask], models: Sequence[Served]) -> set[Key]:
        evaluation = evaluation_of(cfg, stage, asks, models)
        generate(evaluation, connect, retry_errors, console)
        of, met = {ask.id: ask for ask in asks}, set[Key]()
        for row in made(evaluation):
            ask = of[row["item"]]
            key = (ask.benchmark, row["model"], row["sample"] if ask.sample is None else ask.sample, ask.item)
            met.add(key)
            said.cut[key[:2]] += row["status"] == "truncated"
            if row["response"] is None or row["status"] == "engine_error":
                failed.add(key)
            else:
                own = talks.setdefault(key, {})
                own[ask.ask] = _talk(row, () if ask.sample is None else own[ask.after].answers)
        return met

    open_ = answer("answers", first_asks(loaded), cfg.models)
    for stage in range(2, MOST_STAGES):
        due: dict[str, list[Ask]] = {}
        for name, model, sample, own in sorted(open_ - failed):
            asks = talks[name, model, sample, own]
            more = loaded[name][0].further(items[name][own], {ask: talk.answers for ask, talk in asks.items()})
            due.setdefault(model, []).extend(
                Ask(name, own, ask, sample, asks[old].then(texts), old) for ask, (old, texts) in more.items()
            )
        open_ = set()
        for served in cfg.models:
            if wanted := due.get(served.name):
                open_ |= answer(f"answers-{stage}-{served.name}", wanted, (served,))
        if not open_:
            break
    for (name, model, sample, own), asks in talks.items():
        if (name, model, sample, own) not in failed:
            whole = said.whole.setdefault((name, model, sample), {})
            whole[own] = {ask: talk.answers for ask, talk in asks.items()}
    said.failed.update((name, model) for name, model, _, _ in failed)
    return said


def made(evaluation: EvalConfig) -> list[dict[str, Any]]:
    """The rows of exactly the planned responses."""
    planned = planned_responses(evaluation)
    table = read_table(responses_folder(evaluation), RESPONSES)
    table = table.set_index(ID).loc[lambda t: planned[ID][planned[ID].isin(t.index)]]  # in this order, always
    columns = ["item", "model", "sample", "prompt", "response", "status", "transcript"]
    rows: list[dict[str, Any]] = table[columns].astype(object).where(table[columns].notna(), None).to_dict("records")
    return rows


def _talk(row: Mapping[str, Any], before: tuple[str, ...]) -> Talk:
    prompt, response = row["prompt"], row["response"]
    if not conversation(prompt):
        return Talk((*messages_of(prompt), Message("assistant", response)), (*before, response))
    told = messages_of(row["transcript"])
    places = [len(so_far(prompt, [""] * k)) for k in range(turns(prompt))]
    return Talk(told, (*before, *(told[place].content for place in places)))
