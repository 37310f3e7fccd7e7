"""What the tests of benchmarks share: an endpoint as the model under test and as a judge, and a config of both."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from dpeer.data.read import Row
from dpeer.eval.bench.benchmark import BENCHMARKS, Item
from dpeer.eval.bench.config import BenchConfig

QUIET = Console(file=StringIO())
Reply = Callable[[list[dict[str, str]]], str]


def no_ray() -> Any:
    raise AssertionError("Ray was started for nothing")


def config(
    folder: Path, url: str, benchmarks: dict[str, Any], judges: tuple[str, ...] = (), **changes: Any
) -> BenchConfig:
    """Two models and some judges behind one endpoint, told apart by their names there."""
    served = {"backend": "openai", "base_url": url, "api_key_env": "ABSENT"}
    values = {
        "name": "t",
        "output_dir": str(folder),
        "benchmarks": benchmarks,
        "models": [{"name": n, "path": f"gpt-{n}"} | served for n in ("base", "trained")],
        "judges": [{"name": n, "path": n, "family": n} | served for n in judges],
        "judging": {"mode": "structured"},
        "adjust": False,
    }
    return BenchConfig.model_validate(values | changes)


def replies(state: Any, model: Callable[[str, list[dict[str, str]]], str], judge: Callable[[str, str], int]) -> None:
    """Have the endpoint answer: `model` is told name and messages, `judge` name and all that it reads."""

    def decide(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        messages = request["messages"]
        if "response_format" in request:
            score = judge(request["model"], "\n".join(m["content"] for m in messages))
            found: tuple[int, dict[str, Any]] = state.reply(json.dumps({"rationale": "So it is.", "score": score}))
            return found
        found = state.reply(model(request["model"], messages))
        return found

    state.decide = decide


def item_of(benchmark: str, **fields: Any) -> Item:
    """The only item of a row."""
    (item,) = BENCHMARKS[benchmark].items(Row("made.jsonl:1", "made.jsonl, row 1", fields))
    return item
