"""What is imported before any life begins, and a backend that answers at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import deepspeed  # noqa: F401
import numpy as np
import torch.utils.tensorboard  # noqa: F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.qwen3 import modeling_qwen3  # noqa: F401

import dpeer.eval.generate
import dpeer.eval.judge
import dpeer.report.card
import dpeer.report.page  # noqa: F401
from dpeer.eval.backends.config import Farm, Served
from dpeer.eval.backends.registry import BACKENDS
from dpeer.eval.backends.types import Answer, Answers, Backend, Call, Job, Say
from dpeer.eval.store.parts import content_id
from dpeer.launcher import cli, torchrun
from dpeer.report import plot
from tests.launcher.conftest import build_lab

__all__ = ["build_lab", "cli", "torchrun"]
BATCH = 24


class Scribe(Backend):
    """Answers at once, in this process, always the same."""

    def identity(self, served: Served) -> str:
        return content_id(name=served.name)

    def session(self, farm: Farm, say: Say) -> AbstractContextManager[Answers]:
        return nullcontext(self.answers)

    def answers(self, job: Job, calls: Iterable[Call]) -> Iterator[list[Answer]]:
        sampled = job.method.mode == "sample"
        every = list(calls)
        for start in range(0, len(every), BATCH):
            yield [self.answer(call, sampled) for call in every[start : start + BATCH]]

    def answer(self, call: Call, sampled: bool) -> Answer:
        draw = int(call.id[:6], 16)
        logprobs = tuple(float(x) for x in np.log(np.roll([0.6, 0.1, 0.1, 0.1, 0.1], draw % 5)))
        return Answer(call.id, "stop", f"words {draw}", () if sampled else logprobs, output_tokens=1)


get_checkpoint_conversion_mapping("qwen3")  # compiles much, once per process
BACKENDS.names()
BACKENDS.register("scribe", Scribe())


def _blank(paint: Any, height_in: float, *formats: str) -> tuple[bytes, ...]:
    return (b"<svg xmlns='http://www.w3.org/2000/svg'/>",) * len(formats)


plot.render = _blank  # drawing takes longer than all of the toy's training
