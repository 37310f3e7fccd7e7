"""What judges are shown of the answers, and their ratings; made by the farm, as those of any evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from rich.console import Console

from dpeer.eval.backends.registry import family, identity
from dpeer.eval.bench.answers import Said
from dpeer.eval.bench.benchmark import Benchmark, Item, Judged
from dpeer.eval.bench.budget import left_of
from dpeer.eval.bench.config import BenchConfig
from dpeer.eval.config import EvalConfig
from dpeer.eval.judge import rate
from dpeer.eval.plan import Plan, plan
from dpeer.eval.questions.conversations import conversation, so_far, written
from dpeer.eval.run import Connect, refuse_nothing_usable
from dpeer.files import write_text

Wanted = frozenset[tuple[str, str]]
"""(item of the responses, dimension) that are rated."""


def rated(
    cfg: BenchConfig,
    benchmark: Benchmark,
    items: Mapping[str, Item],
    said: Said,
    connect: Connect,
    retry_errors: bool,
    console: Console,
) -> pd.DataFrame | None:
    """The table of ratings of one benchmark; None where no item has the answers that judges would read.

    Raises ConfigError for a judge that is a model under test or of its family, unless that is allowed, and ClusterError
    where a judge has no usable rating.
    """
    evaluation, wanted = judging_of(cfg, benchmark, items, said)
    if not wanted:
        return None
    table = pd.read_parquet(rate(evaluation, connect, retry_errors, console, planner=planner(wanted)))
    refuse_nothing_usable(table.assign(usable=table["status"] == "ok"), "judge", "dpeer bench")
    return table


def judging_of(
    cfg: BenchConfig, benchmark: Benchmark, items: Mapping[str, Item], said: Said
) -> tuple[EvalConfig, Wanted]:
    """The evaluation that rates the answers of one benchmark, and what is rated; its file of texts is written."""
    stage = f"judged-{benchmark.name}"
    folder = cfg.folder / stage
    folder.mkdir(parents=True, exist_ok=True)
    wanted: set[tuple[str, str]] = set()
    lines = []
    for row, dimensions in _texts(cfg, benchmark, items, said):
        wanted |= {(row["item"], dimension) for dimension in dimensions}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_text(folder / "texts.jsonl", "".join(lines))
    responses, budget = folder / "texts.jsonl", left_of(cfg, stage)
    judging = cfg.judging_by(rubric_of(benchmark, folder))
    return cfg.evaluation(stage, responses=responses, judges=cfg.judges, judging=judging, budget=budget), frozenset(
        wanted
    )


def rubric_of(benchmark: Benchmark, folder: Path) -> str:
    """The name of a shipped rubric, or the file into which the benchmark's own is written."""
    if isinstance(benchmark.rubric, str):
        return benchmark.rubric
    path = folder / "rubric.yaml"
    write_text(path, yaml.safe_dump(dict(benchmark.rubric), sort_keys=False, allow_unicode=True))
    return str(path)


def _texts(
    cfg: BenchConfig, benchmark: Benchmark, items: Mapping[str, Item], said: Said
) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    own = {m.name: {"model_hash": identity(m), "family": family(m)} for m in cfg.models}
    for (name, model, sample), answered in said.whole.items():
        for item, answers in answered.items() if name == benchmark.name else ():
            for judged in benchmark.judged(items[item], answers):
                row = {"model": model, "item": text_of(item, judged.key), "sample": sample} | own[model] | _text(judged)
                yield {k: v for k, v in row.items() if v is not None}, judged.dimensions


def text_of(item: str, key: str) -> str:
    """Name of a judged text of an item, the same for all models."""
    return f"{item}/{key}" if key else item


def _text(judged: Judged) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": judged.prompt, "response": judged.response}
    if conversation(judged.prompt):
        row["transcript"] = written(so_far(judged.prompt, [*judged.before, judged.response]))
    return row | ({"reference": judged.reference} if judged.reference else {})


def planner(wanted: Wanted) -> Callable[[EvalConfig], Plan]:
    """A plan of just these; whether the design tells severities apart is seen later, by the fit that needs it."""

    def only(cfg: EvalConfig) -> Plan:
        every = plan(cfg, check_design=False)

        def kept(rows: pd.DataFrame) -> pd.DataFrame:
            pairs = zip(rows["item"], rows["dimension"], strict=True)
            mask = np.fromiter(
                (pair in wanted for pair in pairs), bool, len(rows)
            )  # a list that is empty names columns
            return rows[mask].reset_index(drop=True)

        return replace(every, rows=kept(every.rows), todo=kept(every.todo))

    return only
