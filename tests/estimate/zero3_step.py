"""One rank of a real ZeRO-3 training in a process of its own; prints the peak of all its tensors (bytes) as JSON."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from dpeer.config import Config
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.training import world
from dpeer.training.policy import Policy
from dpeer.training.prepare import Prepared


def main(job: dict[str, Any], rank: int) -> dict[str, int]:
    torch.set_num_threads(1)
    here = world.start(rank, job["ranks"], "127.0.0.1", job["port"], 600, gpu=False)
    rng = random.Random(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(5, 300) for _ in range(n))

    trees = tuple(
        TokenTree(i, ids(job["prompt"]), tuple(ids(job["response"]) for _ in range(1 + job["rejects"])), (), 0, ("A",))
        for i in range(job["records"])
    )
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        policy = Policy(
            Config.model_validate(job["config"]), Prepared(TokenizedSet(("A",), trees, 0, 0), None, None, {}), here
        )
        for _ in range(2):  # DeepSpeed learns in the first step what it may keep gathered in later ones
            policy.train_step(None)
    world.stop()
    assert profiled.profiler is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return {"tensors": peak}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]))))
