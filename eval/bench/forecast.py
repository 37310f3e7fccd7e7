"""What a run of benchmarks costs at most, before any model has answered: each stage is planned with made-up answers of
the longest length, by the code that plans the real one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from dpeer.eval import generate, judge
from dpeer.eval.bench.answers import MOST_STAGES, Ask, Loaded, Said, Talk, evaluation_of, first_asks
from dpeer.eval.bench.benchmark import Answers, Benchmark, Item
from dpeer.eval.bench.config import BenchConfig
from dpeer.eval.bench.judged import judging_of, planner
from dpeer.eval.bench.load import source_of
from dpeer.eval.bench.run import asked, loaded
from dpeer.eval.questions.conversations import so_far, turns

WORD = "word "
"""About a token."""


class Forecast(NamedTuple):
    """answers, more: columns of `generate.cost`, of the first answers (what is missing of them) and of what protocols
    ask in view of them; ratings: columns of `judge.cost`, and `benchmark`. lines: what else is to be said."""

    answers: pd.DataFrame
    more: pd.DataFrame
    ratings: pd.DataFrame
    lines: tuple[str, ...]


def forecast(cfg: BenchConfig) -> Forecast:
    """Raises ConfigError for judges that will be refused, and DataError for faulty data."""
    every = loaded(cfg)
    open_ = asked(cfg, every)
    lines = [
        f"{b.title}: {len(items):,} items from {source_of(b, cfg.benchmarks[n].data)}"
        for n, (b, items) in every.items()
    ]
    if alone := [b.title for b, _ in every.values() if b.measure == "log-probabilities"]:
        lines.append(f"{', '.join(alone)}: log-probabilities, which are computed here.")
    if not open_:
        return Forecast(pd.DataFrame(), pd.DataFrame(), pd.DataFrame(), tuple(lines))
    answers = generate.cost(evaluation_of(cfg, "answers", first_asks(open_), cfg.models))
    with tempfile.TemporaryDirectory() as folder:  # made-up answers never stand where real ones are looked for
        aside = cfg.model_copy(update={"output_dir": Path(folder), "budget": None})
        said, stages = _made_up(cfg, open_)
        later = [generate.cost(evaluation_of(aside, f"more-{k}", asks, cfg.models)) for k, asks in enumerate(stages)]
        more = pd.concat(later).groupby("model", sort=False).sum(min_count=1).reset_index() if later else pd.DataFrame()
        judged = [b for b, _ in open_.values() if b.rubric and cfg.judges]
        ratings = [_ratings(aside, b, open_[b.name][1], said) for b in judged]
    return Forecast(answers, more, pd.concat(ratings) if ratings else pd.DataFrame(), tuple(lines))


def _ratings(cfg: BenchConfig, benchmark: Benchmark, items: Sequence[Item], said: Said) -> pd.DataFrame:
    evaluation, wanted = judging_of(cfg, benchmark, {item.id: item for item in items}, said)
    return judge.cost(evaluation, planner(wanted)(evaluation)).assign(benchmark=benchmark.title)


def _made_up(cfg: BenchConfig, every: Loaded) -> tuple[Said, list[list[Ask]]]:
    """All answers of all models, and what models are asked after the first ones, stage by stage."""
    text, said, stages = WORD * cfg.generation.max_tokens, Said(), list[list[Ask]]()
    samples = range(cfg.generation.samples)
    for name, (benchmark, items) in every.items():
        answered: dict[str, Answers] = {}
        for item in items:
            talks = {ask: _told(prompt, (), text) for ask, prompt in item.asks.items()}
            for stage in range(MOST_STAGES - 2):
                more = benchmark.further(item, {ask: talk.answers for ask, talk in talks.items()})
                if not more:
                    break
                prompts = {ask: (talks[old].then(texts), old) for ask, (old, texts) in more.items()}
                stages += [[]] * (stage == len(stages))
                stages[stage] += [Ask(name, item.id, a, n, p, old) for a, (p, old) in prompts.items() for n in samples]
                talks |= {a: _told(p, talks[old].answers, text) for a, (p, old) in prompts.items()}
            answered[item.id] = {ask: talk.answers for ask, talk in talks.items()}
        said.whole |= {(name, served.name, sample): answered for served in cfg.models for sample in samples}
    return said, stages


def _told(prompt: str, before: tuple[str, ...], text: str) -> Talk:
    answers = (text,) * turns(prompt)
    return Talk(so_far(prompt, answers), (*before, *answers))
