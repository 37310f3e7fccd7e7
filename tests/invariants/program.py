"""Run under torchrun by test_invariants.py: gradients and three steps of many configurations, written out.

usage: program.py OUT RECIPE SCENARIO ... (a scenario is NAME:key=value,key=value; NAME+ is exported too, NAME~N goes on
after the first step from a checkpoint, with N ranks to a pack). Counts a step's all-reduces too, and keeps scores of
policy and reference after the last step.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file

from dpeer.config_io import load_config
from dpeer.training import world
from dpeer.training.calls import Scores
from dpeer.training.rank import TrainingRank
from dpeer.training.scoring import merge

SCORED = 5


def gradients(rank: TrainingRank) -> dict[str, Any]:
    """Gradients of the global objective, by name, as the optimizer is about to use them."""
    from deepspeed.utils import safe_get_full_grad

    engine, found = rank.policy.engine, {}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad and engine.sharded:
            found[name] = safe_get_full_grad(parameter).detach().clone().float().contiguous()
        elif parameter.requires_grad:
            dist.all_reduce(summed := parameter.grad.clone())
            found[name] = summed
    return found


def scenario(out: Path, recipe: str, name: str, changes: list[str], here: world.World) -> None:
    name, exported = name.removesuffix("+"), name.endswith("+")
    name, _, later = name.partition("~")
    rank = TrainingRank(load_config(recipe, [f"name={name}", *changes]), here)
    captured: list[dict[str, Any]] = []
    step = rank.policy.engine.step
    rank.policy.engine.step = lambda lr: (captured.append(gradients(rank)), step(lr))[1]
    entries = [rank.train_step()]
    if later:
        rank.save(out / f"{name}-saved")
        rank.close()
        changes = [*changes, f"training.sequence_parallel={later}"]
        rank = TrainingRank(load_config(recipe, [f"name={name}", *changes]), here)
        rank.load(out / f"{name}-saved")
    reduced: list[tuple[str, int]] = []
    original = dist.all_reduce

    def counted(tensor: Any, *args: Any, **options: Any) -> Any:
        reduced.append((str(tensor.dtype), tensor.numel()))
        return original(tensor, *args, **options)

    dist.all_reduce = counted
    entries.append(rank.train_step())
    dist.all_reduce = original
    entries.append(rank.train_step())
    scores = [everywhere(f(0, SCORED)) for f in (rank.score_train, rank.score_train_reference)]
    if exported:
        rank.export(out / f"{name}-export")
    if here.rank == 0:
        save_file(captured[0], str(out / f"{name}.safetensors"))
        (out / f"{name}.json").write_text(json.dumps({"entries": entries, "all_reduces": reduced, "scores": scores}))


def everywhere(share: Scores) -> list[list[float]]:
    """All ranks' shares, put together."""
    shares: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, share)
    return merge(shares, SCORED)


def main() -> None:
    out, recipe, *scenarios = sys.argv[1:]
    here = world.start(
        int(os.environ["RANK"]),
        int(os.environ["WORLD_SIZE"]),
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        120,
        gpu=False,
    )
    for text in scenarios:
        name, _, changes = text.partition(":")
        scenario(Path(out), recipe, name, [c for c in changes.split(",") if c], here)
    world.stop()


if __name__ == "__main__":
    main()
