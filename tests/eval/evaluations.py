"""What the tests of plans and of judging share: responses on disk and an evaluation of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpeer.eval.config import EvalConfig


def write_responses(path: Path, items: int, models: tuple[str, ...] = ("x", "y"), samples: int = 1) -> Path:
    rows = [
        {
            "model": m,
            "item": f"q{i}",
            "prompt": f"Question {i}?",
            "response": f"Answer {s} of {m} to {i}. " * (1 + i % 3),
        }
        for m in models
        for i in range(items)
        for s in range(samples)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluation(folder: Path, models: Path, items: int = 5, samples: int = 1, **changes: Any) -> EvalConfig:
    """Two models under test that exist as responses only, two judges, the toy rubric with its four dimensions."""
    values = {
        "name": "test",
        "output_dir": str(folder),
        "responses": str(write_responses(folder / "responses.jsonl", items, samples=samples)),
        "judges": [{"name": n, "path": str(models / n)} for n in ("a", "c")],
        "judging": {"rubric": "toyworld", "min_mass": 0.0},
        "engine": {"device": "cpu", "dtype": "float32", "max_model_len": 512, "max_num_seqs": 64},
    }
    return EvalConfig.model_validate(values | changes)


RELATED = {"rubric": "toyworld", "min_mass": 0.0, "allow_related": True}


def no_ray() -> Any:
    raise AssertionError("Ray was started for nothing")
