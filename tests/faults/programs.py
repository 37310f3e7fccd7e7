"""What is imported before any life begins, and a backend that answers at once."""

from __future__ import annotations

from typing import Any

import deepspeed  # noqa: F401
import torch.utils.tensorboard  # noqa: F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.qwen3 import modeling_qwen3  # noqa: F401

import dpeer.eval.generate
import dpeer.eval.judge
import dpeer.report.card
import dpeer.report.page  # noqa: F401
from dpeer.eval.backends.registry import BACKENDS
from dpeer.launcher import cli, torchrun
from dpeer.report import plot
from tests.faults.scribe import Scribe
from tests.launcher.conftest import build_lab

__all__ = ["build_lab", "cli", "torchrun"]


get_checkpoint_conversion_mapping("qwen3")  # compiles much, once per process
BACKENDS.names()
BACKENDS.register("scribe", Scribe())


def _blank(paint: Any, height_in: float, *formats: str) -> tuple[bytes, ...]:
    return (b"<svg xmlns='http://www.w3.org/2000/svg'/>",) * len(formats)


plot.render = _blank  # drawing takes longer than all of the toy's training
