"""TRL's side of step_vs_trl.py; runs in TRL's own environment."""

from __future__ import annotations

from pathlib import Path

import torch
import trl.trainer.utils
from meter import Meter, finish, job
from trl_run import trainer


def main() -> None:
    torch.set_num_threads(1)
    spec, meter = job(), Meter()
    if spec["completions_head"]:
        # TRL's head skips prompt positions on CUDA and scores all on CPU. This name is read for that choice alone.
        trl.trainer.utils._use_triton = lambda device: True
    made = trainer(
        spec["model"],
        Path(spec["pairs"]),
        meter,
        output_dir=spec["scratch"],
        per_device_train_batch_size=spec["pairs_per_forward"],
        gradient_accumulation_steps=spec["pairs_per_step"] // spec["pairs_per_forward"],
        max_steps=spec["steps"],
        precompute_ref_log_probs=spec["reference"] == "cache",
        learning_rate=spec["lr"],
        beta=spec["beta"],
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
    )
    meter.count(made.model.model, "policy")
    if made.ref_model is not None:
        meter.count(made.ref_model.model, "reference")
    made.train()
    used = made.train_dataset.select(range(spec["steps"] * spec["pairs_per_step"]))
    pairs = ((row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in used)
    finish(meter.result(pairs) | {"optimizer": made.args.optim, "clip": made.args.max_grad_norm})


if __name__ == "__main__":
    main()
