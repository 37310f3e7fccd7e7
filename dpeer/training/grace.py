"""Whether a checkpoint can be written between the warning of a pre-emption and its coming."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from dpeer.config import Config
from dpeer.errors import ConfigError

VARIABLE = "DPEER_GRACE_S"
"""Seconds; the job scripts for Slurm set it to what they ask of `--signal`."""


def grace_s(config: Config, environment: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between the pre-emption signal and the end: the recipe's, or those of the job; None where neither says.
    ConfigError: the variable is no number of seconds."""
    if config.cluster.grace_s is not None or not (given := environment.get(VARIABLE)):
        return config.cluster.grace_s
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigError(f"{VARIABLE}={given}: must be the seconds between the pre-emption signal and the job's end.")
    return seconds


def needed_s(config: Config, save_s: float, step_s: float = 0.0) -> float:
    """Seconds from the signal until its checkpoint is whole: the step at hand, then the save; before it another one
    that may be in flight."""
    return step_s + save_s * (2 if config.training.checkpoint_async else 1)


def shortage(config: Config, size: int, save_s: float, step_s: float = 0.0) -> str:
    """What to do when a save of `size` bytes that takes `save_s` seconds does not fit the grace time; empty where it
    fits, or none is known."""
    grace = grace_s(config)
    if grace is None or (needed := needed_s(config, save_s, step_s)) <= grace:
        return ""
    twice = ", after one that may be in flight," if config.training.checkpoint_async else ""
    return (
        f"a checkpoint of {size / 1e9:,.1f} GB is written in {save_s:,.0f} s ({size / 1e9 / save_s:.2f} GB/s): with "
        f"the step at hand{twice} that takes {needed:,.0f} s, and pre-emption leaves {grace:g} s. The last checkpoint "
        "would be lost, and the steps since the one before. Ask for more time (Slurm: "
        f"--signal=B:USR1@{math.ceil(needed * 1.5)}, and cluster.grace_s), or write to a faster file system"
    )
