"""torchrun's entry with one fault, named by the variable FAULT, on one rank: for tests of how such a run ends."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from dpeer.errors import CheckpointError
from dpeer.launcher import torchrun
from dpeer.training.calls import References, SaveCost, Scores
from dpeer.training.rank import TrainingRank

FAULT = os.environ["FAULT"]


class FaultyRank(TrainingRank):
    def train_step(self, references: References | None = None) -> dict[str, Any]:
        if self.policy.step == 3 and self.policy.world.rank == 1:
            if FAULT == "known":
                raise CheckpointError("only this rank has a fault.")
            if FAULT == "bug":
                raise ValueError("a bug on this rank")
        return super().train_step(references)

    def save(self, folder: Path) -> SaveCost:
        cost = super().save(folder)
        if FAULT == "silent" and self.policy.world.rank == 1:
            time.sleep(10_000)  # in no collective: only the driver waits
        return cost

    def score_heldout(self) -> Scores:
        if FAULT == "preempted" and self.policy.world.rank == 0:
            os.kill(os.getpid(), signal.SIGUSR1)  # after the last step, while the other ranks are at work
        return super().score_heldout()


torchrun.ROLES["policy"] = FaultyRank

if __name__ == "__main__":
    sys.exit(torchrun.main(sys.argv[1:]))
