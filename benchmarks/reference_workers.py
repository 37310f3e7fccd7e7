"""With the reference on workers of its own, does the driver let its steps overlap with the policy's?
Ranks only sleep here; without overlap a step would take the sum of both.

The driver as shipped (`training.run`) orders steps of two groups whose ranks only sleep, as long as a step of the
policy and of the reference is said to take, in threads that never wait for each other: what is measured is whether the
order of calls lets them overlap, and what the driver adds; not what a reference costs.

usage: python benchmarks/reference_workers.py [--steps 10] [--seconds 0.6]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import Figure, Recorder, print_table
from dpeer.config import Config
from dpeer.training.run import TrainingRun
from dpeer.training.run_dir import RunDir

GOAL = 1.05
SHARES = ((1.0, 0.3), (1.0, 1.0), (0.5, 1.0))
"""Of --seconds: a step of the policy, that of the reference."""
COST = {
    "seconds": dict.fromkeys(("reference", "forward", "backward", "dual", "exchange", "optimizer"), 0.0),
    "flops": 0.0, "model_flops": 0.0, "ceiling": None, "largest_pack": 1, "prompt_tokens": 1, "response_tokens": 1,
    "responses": 1, "memory_allocated": None, "memory_reserved": None, "writing": False,
}  # fmt: skip


class Sleepers:
    """A group of one rank that takes `seconds` for each call, one at a time."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.steps, self.thread = seconds, 0, ThreadPoolExecutor(1)

    def start(self, method: Any, *arguments: Any) -> Future[Any]:
        return self.thread.submit(getattr(self, method.__name__), *arguments)

    def wait(self, phase: str, pending: Future[Any]) -> list[Any]:
        return [pending.result()]

    def timed_step(self, references: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        time.sleep(self.seconds)
        self.steps += 1
        return {"step": self.steps, "tokens": 1.0, "packs": 1.0, "dimensions": {}, "constraints": {}}, COST

    def score_step(self, step: int) -> dict[int, list[float]]:
        time.sleep(self.seconds)
        return {0: [0.0]}


class Groups:
    def __init__(self, policy: float, reference: float) -> None:
        self.groups = Sleepers(policy), Sleepers(reference)

    def policy(self) -> Sleepers:
        return self.groups[0]

    def reference(self) -> Sleepers:
        return self.groups[1]

    def close(self) -> None:
        for group in self.groups:
            group.thread.shutdown()


class Quiet:
    """Nobody stops the run, and nobody is told."""

    received, exit_code = None, 0

    def deferred(self) -> Any:
        return nullcontext()

    def step(self, entry: Any, timing: Any) -> None: ...

    def warn(self, message: str) -> None: ...


class Saves:
    """No checkpoints: what they cost is measured by async_save.py."""

    def finish(self) -> None: ...

    def told(self, seconds: float, warn: Any) -> None: ...

    def due(self, step: int, total: int) -> bool:
        return False


def seconds(folder: Path, policy: float, reference: float, steps: int) -> list[float]:
    """Of each step after the first, for which nothing could be ordered ahead."""
    config = Config.model_validate(
        {
            "name": f"{policy}-{reference}",
            "output_dir": folder,
            "model": {"path": "none"},
            "data": {"train": "none", "dual": "none"},
            "objective": {"dual": {"evidence": "batch", "aim": 0}},
            "training": {
                "steps": steps,
                "keep": "last",
                "records_per_step": 1,
                "sample_every": None,
                "checkpoint_every": 1000,
            },
            "cluster": {"reference": "workers"},
        }
    )
    files, groups, quiet = RunDir(config.run_dir), Groups(policy, reference), Quiet()
    files.begin(config, {})
    run: Any = TrainingRun(config, groups, files, quiet, lambda *_: nullcontext(quiet))  # type: ignore[arg-type]
    run.total, run.saves = steps, Saves()
    run.steps(0, quiet)
    groups.close()
    return [json.loads(line)["seconds"] for line in files.timing.read_text().splitlines()][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.6)
    recorder = Recorder(parser)
    given = parser.parse_args()
    figures, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        for shares in SHARES:
            policy, reference = (share * given.seconds for share in shares)
            found = seconds(Path(folder), policy, reference, given.steps)
            slower = [max(policy, reference)] * len(found)
            title = f"step over the slower: policy sleeps {policy:g} s, reference {reference:g} s"
            figures.append(Figure.ratio(title, found, slower, "lower", GOAL))
            middle = statistics.median(found)
            rows.append(
                [title, f"{middle:.3f}", f"{middle / slower[0]:.3f}", f"{(policy + reference) / slower[0]:.2f}"]
            )
    print_table(
        "Reference one step ahead", ("", "s", "ratio", "without overlap"), rows, f"{given.steps} steps, medians"
    )
    recorder.write(given, figures)


if __name__ == "__main__":
    main()
