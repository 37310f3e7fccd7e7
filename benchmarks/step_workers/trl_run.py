"""Steps of TRL's DPOTrainer, told to a meter with unrounded losses. Needs TRL, and nothing of dpeer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer


class Meter(Protocol):
    def start(self) -> None: ...
    def step_done(self, loss: float) -> None: ...


class Timing(TrainerCallback):
    def __init__(self, meter: Meter, losses: list[torch.Tensor]) -> None:
        self.meter, self.losses = meter, losses

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.meter.start()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.meter.step_done(sum(x.item() for x in self.losses) / len(self.losses))
        self.losses.clear()


class Trainer(DPOTrainer):
    """TRL's trainer; keeps the unrounded losses."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        self.seen.append(loss.detach())
        return loss


def trainer(model: str | Path, pairs: Path, meter: Meter, **settings: Any) -> Trainer:
    """Of the rows of a file of pairs in their order, at a constant learning rate; nothing is written or shown."""
    arguments = DPOConfig(
        train_sampling_strategy="sequential",
        lr_scheduler_type="constant",
        max_length=None,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    made = Trainer(
        model=str(model),
        args=arguments,
        train_dataset=Dataset.from_list([json.loads(line) for line in pairs.read_text().splitlines()]),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    made.seen = []
    made.add_callback(Timing(meter, made.seen))
    return made
