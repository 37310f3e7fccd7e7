"""TRL's side of step_vs_trl.py; runs in TRL's own environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import trl.trainer.utils
from datasets import Dataset
from meter import Meter, finish, job
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer


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


def main() -> None:
    torch.set_num_threads(1)
    spec, meter = job(), Meter()
    if spec["completions_head"]:
        # TRL's head skips prompt positions on CUDA and scores all on CPU. This name is read for that choice alone.
        trl.trainer.utils._use_triton = lambda device: True
    rows = [json.loads(line) for line in Path(spec["pairs"]).read_text().splitlines()]
    arguments = DPOConfig(
        output_dir=spec["scratch"],
        per_device_train_batch_size=spec["pairs_per_forward"],
        gradient_accumulation_steps=spec["pairs_per_step"] // spec["pairs_per_forward"],
        max_steps=spec["steps"],
        precompute_ref_log_probs=spec["reference"] == "cache",
        train_sampling_strategy="sequential",
        lr_scheduler_type="constant",
        learning_rate=spec["lr"],
        beta=spec["beta"],
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=spec["model"],
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(spec["model"]),
    )
    trainer.seen = []
    trainer.add_callback(Timing(meter, trainer.seen))
    meter.count(trainer.model.model, "policy")
    if trainer.ref_model is not None:
        meter.count(trainer.ref_model.model, "reference")
    trainer.train()
    used = trainer.train_dataset.select(range(spec["steps"] * spec["pairs_per_step"]))
    pairs = ((row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in used)
    finish(meter.result(pairs) | {"optimizer": arguments.optim, "clip": arguments.max_grad_norm})


if __name__ == "__main__":
    main()
