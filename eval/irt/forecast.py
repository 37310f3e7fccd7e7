"""What sampling will take: time, from the pilot chain; memory and disk, from counts, before hours are spent on it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dpeer.eval.irt.errors import SamplerError
from dpeer.eval.irt.types import Options
from dpeer.memory import free_memory

CHAIN_MB, RATING_KB = 10, 0.3
"""Memory of one chain, generously: 9 MB at 5,760 ratings, 25 MB at 88,000, 201 MB at 1,000,000."""
VALUE_BYTES, OTHER_COLUMNS = 14, 1.1
"""Of one value in CmdStan's files (260 MB for 1,000 draws of 18,670 parameters), and columns per parameter."""
WARMUP = 1.3
"""Cost of an iteration of warm-up, whose first trees are deep, over that of a draw."""


def memory(ratings: int) -> float:
    """Bytes that one chain takes."""
    return 2**20 * CHAIN_MB + 2**10 * RATING_KB * ratings


def at_once(chains: int, threads: int, ratings: int) -> int:
    """Chains that run side by side: no more than there are cores for their threads, and memory."""
    return max(1, min(chains, len(os.sched_getaffinity(0)) // threads, int(free_memory() / memory(ratings))))


def seconds(per_draw: float, options: Options, side_by_side: int) -> float:
    """Of all chains, by the seconds that a draw of the pilot chain took."""
    rows = -(-options.chains // side_by_side)
    return per_draw * rows * (WARMUP * options.warmup + options.draws)


def check_room(folder: Path, ratings: int, parameters: int, options: Options, files: int) -> None:
    """SamplerError where not even one chain fits into memory, or `files` of CmdStan's files not onto the disk."""
    if (need := memory(ratings)) > (free := free_memory()):
        raise SamplerError(
            f"one chain of {ratings:,} ratings needs about {need / 2**30:.1f} GB of memory, and {free / 2**30:.1f} GB "
            "are free: end other programs, fit on a machine with more, or fit the dimensions apart (--dimension)"
        )
    need = VALUE_BYTES * OTHER_COLUMNS * parameters * options.draws * files
    if need > (free := shutil.disk_usage(folder).free):
        raise SamplerError(
            f"CmdStan writes every parameter at every draw, {need / 2**30:.1f} GB here, and {folder} has "
            f"{free / 2**30:.1f} GB left: make room, set TMPDIR to another place, or lower --draws"
        )
