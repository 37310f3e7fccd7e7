"""DeepSpeed's compiled extensions: built once per machine, without the hang that a killed build leaves behind.

torch guards a build with a lock file that outlives its process, and every later process then waits on it for ever. Here
the kernel holds the lock (flock), which dies with the process; whoever has it may remove torch's leftovers.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any


def cpu_adam() -> Any:
    """The DeepSpeedCPUAdam class, compiled on first use (one to two CPU minutes) in a folder of its own."""
    cache = Path(os.environ.get("DPEER_CACHE", ".cache")).resolve()
    folder = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache / "torch_extensions")))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "dpeer.lock").open("w") as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)
        for stale in folder.glob("**/lock"):
            stale.unlink()
        from deepspeed.ops.adam import DeepSpeedCPUAdam
        from deepspeed.ops.op_builder import CPUAdamBuilder

        CPUAdamBuilder().load(verbose=False)
    return DeepSpeedCPUAdam
