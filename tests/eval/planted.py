"""Judges of known severity in this process, for responses of known ability: `Answer S of MODEL to ITEM`."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dpeer.eval.backends.config import Farm, Served
from dpeer.eval.backends.registry import BACKENDS
from dpeer.eval.backends.types import Answer, Answers, Backend, Call, Job, Say
from dpeer.eval.config import EvalConfig
from dpeer.eval.store.parts import content_id

ABILITY = {"base": 0.0, "same": 0.0, "better": 2.0}
SEVERITY = {"mild": -0.4, "stern": 0.4}
THRESHOLDS = np.array([-1.5, -0.5, 0.5, 1.5])
S_ITEM, S_EFFECT = 0.6, 0.5


def normal(*parts: object) -> float:
    return float(np.random.default_rng([ord(c) for c in "/".join(map(str, parts))]).standard_normal())


class Planted(Backend):
    """Draws every score from the adjacent-category model, seeded by the rating's id. `kill_at`: the call at which it
    ends this process."""

    batch = 16

    def __init__(self, kill_at: int = 0) -> None:
        self.asked: list[str] = []
        self.kill_at = kill_at

    def identity(self, served: Served) -> str:
        return content_id(name=served.name)

    def session(self, farm: Farm, say: Say) -> AbstractContextManager[Answers]:
        return nullcontext(self.answers)

    def answers(self, job: Job, calls: Iterable[Call]) -> Iterator[list[Answer]]:
        held: list[Answer] = []
        for call in calls:
            self.asked.append(call.id)
            if len(self.asked) == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            held.append(self.answer(call, SEVERITY[job.served.name]))
            if len(held) == self.batch:
                yield held
                held = []
        if held:
            yield held

    def answer(self, call: Call, severity: float) -> Answer:
        text = "".join(segment.text for segment in call.segments)
        found = re.search(r"Answer (\d+) of (\w+) to (\d+)", text)
        assert found
        sample, model, item = found.groups()
        place = ABILITY[model] - S_ITEM * normal(item) + S_EFFECT * normal(model, item, sample) - severity
        logits = np.concatenate([[0.0], np.cumsum(place - THRESHOLDS)])
        rng = np.random.default_rng(int(call.id[:12], 16))
        logprobs = np.full(5, np.log(0.01))
        logprobs[int((logits + rng.gumbel(size=5)).argmax())] = np.log(0.96)
        return Answer(call.id, "stop", "", tuple(logprobs.tolist()), prompt_tokens=100, output_tokens=1)


def planted(folder: Path, responses: Path, **changes: Any) -> EvalConfig:
    """An evaluation on one dimension by two planted judges, in rounds."""
    values = {
        "name": "test",
        "output_dir": str(folder),
        "base": "base",
        "responses": str(responses),
        "judges": [{"name": name, "path": "planted", "backend": "planted"} for name in SEVERITY],
        "judging": {"rubric": "toyworld", "dimensions": ["A"], "until": {"contrast": 0.8, "batch": 84}},
    }
    return EvalConfig.model_validate(values | changes)


def registered(kill_at: int = 0) -> Planted:
    backend = Planted(kill_at)
    BACKENDS.register("planted", backend)
    return backend


if __name__ == "__main__":  # FOLDER RESPONSES KILL_AT: a run that kills itself
    from dpeer.eval.judge import judge

    registered(int(sys.argv[3]))
    judge(planted(Path(sys.argv[1]), Path(sys.argv[2])), nullcontext, console=Console(file=StringIO()))
