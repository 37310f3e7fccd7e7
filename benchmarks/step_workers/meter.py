"""CPU time, peak memory, forward tokens and losses of one process; imported in both environments."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class Meter:
    """`start()` before the first step, `step_done(loss)` after each: all that lies between counts, data loading too."""

    def __init__(self) -> None:
        self.cpu_s: list[float] = []
        self.losses: list[float] = []
        self.tokens: list[dict[str, int]] = []
        self._forward: dict[str, int] = {}
        self._since = 0.0

    def start(self) -> None:
        self._since, self._forward = time.process_time(), {}

    def count(self, model: Any, role: str) -> None:
        """Count the tokens, padding included, that go through the transformer layers of `model`."""

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            self._forward[role] = self._forward.get(role, 0) + ids.numel()

        model.register_forward_pre_hook(hook, with_kwargs=True)

    def step_done(self, loss: float) -> None:
        now = time.process_time()
        self.cpu_s.append(now - self._since)
        self.losses.append(loss)
        self.tokens.append(self._forward)
        self.start()

    def result(self, pairs: Iterable[tuple[list[int], list[int], list[int]]]) -> dict[str, Any]:
        """`pairs`: the (prompt, chosen, rejected) ids of all steps in order, hashed to compare the two sides.

        The first step is warm-up (allocator, lazy initialisation) and is not timed. Peak memory is the kernel's VmHWM,
        which unlike ru_maxrss does not carry over from the parent process.
        """
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return {
            "cpu_s": self.cpu_s[1:],
            "losses": self.losses,
            "tokens": self.tokens[-1],
            "peak_mb": int(status["VmHWM"].split()[0]) / 1024,
            "ids": hashlib.sha256(json.dumps([[*map(list, pair)] for pair in pairs]).encode()).hexdigest(),
        }


def job() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    return found


def finish(result: dict[str, Any]) -> None:
    Path(sys.argv[2]).write_text(json.dumps(result))
