"""torchrun's entry with one fault, named by the variable FAULT, on one rank: for tests of how such a run ends."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from dpeer.errors import CheckpointError
from dpeer.launcher import torchrun
from dpeer.training import checkpoint
from dpeer.training.calls import References, SaveCost, Scores
from dpeer.training.rank import TrainingRank
from dpeer.training.snapshot import Snapshot
from dpeer.training.world import World

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


def write(snapshot: Snapshot, folder: Path, world: World, usual: Any = checkpoint._write) -> checkpoint.Written:
    """In the thread beside the training, of the checkpoint after step 8: rank 0's part is written in any case."""
    if folder.name == ".writing-0000008":
        if FAULT == "unwritable" and world.rank == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        if FAULT in ("slow", "killed"):
            time.sleep(3 * world.rank)  # many steps
        if FAULT == "killed" and world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
    written: checkpoint.Written = usual(snapshot, folder, world)
    return written


torchrun.ROLES["policy"] = FaultyRank
checkpoint._write = write

if __name__ == "__main__":
    sys.exit(torchrun.main(sys.argv[1:]))
