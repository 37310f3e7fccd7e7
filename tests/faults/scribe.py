"""A backend that answers by itself, for evaluations whose answers do not matter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from dpeer.eval.backends.config import Farm, Served
from dpeer.eval.backends.types import Answer, Answers, Backend, Call, Job, Say
from dpeer.eval.store.parts import content_id


class Scribe(Backend):
    """Answers at once, in this process, always the same."""

    batch = 24

    def identity(self, served: Served) -> str:
        return content_id(name=served.name)

    def session(self, farm: Farm, say: Say) -> AbstractContextManager[Answers]:
        return nullcontext(self.answers)

    def answers(self, job: Job, calls: Iterable[Call]) -> Iterator[list[Answer]]:
        sampled = job.method.mode == "sample"
        every = list(calls)
        for start in range(0, len(every), self.batch):
            yield [self.answer(call, sampled) for call in every[start : start + self.batch]]

    def answer(self, call: Call, sampled: bool) -> Answer:
        draw = int(call.id[:6], 16)
        logprobs = tuple(float(x) for x in np.log(np.roll([0.6, 0.1, 0.1, 0.1, 0.1], draw % 5)))
        return Answer(call.id, "stop", f"words {draw}", () if sampled else logprobs, output_tokens=1)
