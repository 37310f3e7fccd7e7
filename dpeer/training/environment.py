"""Variables of a rank's process that libraries read once, before or when a GPU is first used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dpeer.config import Config

DIAGNOSIS = {
    "NCCL_DEBUG": "WARN",
    "NCCL_DEBUG_FILE": "/dev/stderr",  # NCCL writes to stdout otherwise, which nobody keeps
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "20000",  # the flight recorder's: collectives per rank
}
DETERMINISM = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring", "NCCL_PROTO": "Simple"}
ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # the same setting: torch's older and newer name


def gpu_variables(config: Config, role: str) -> dict[str, str]:
    """For a rank on a GPU. NCCL's flight recorder writes RUN/nccl/ROLE-RANK when a collective times out."""
    chosen = DIAGNOSIS | {"TORCH_NCCL_DEBUG_INFO_TEMP_FILE": f"{config.run_dir.absolute() / 'nccl' / role}-"}
    chosen[ALLOCATOR[0]] = "expandable_segments:True"  # packs of all lengths would fragment fixed segments
    return chosen | (DETERMINISM if config.training.deterministic else {})


def set_defaults(variables: dict[str, str]) -> None:
    """Set what the user has not, under any of its names."""
    given = set(os.environ)
    for name, value in variables.items():
        if name not in given and not (name in ALLOCATOR and given.intersection(ALLOCATOR)):
            os.environ[name] = value
    if dumps := variables.get("TORCH_NCCL_DEBUG_INFO_TEMP_FILE"):
        Path(dumps).parent.mkdir(parents=True, exist_ok=True)


def set_determinism(wanted: bool) -> None:
    """Of torch's kernels, FlashAttention's backward among them; the same process may have served another recipe."""
    import torch

    torch.use_deterministic_algorithms(wanted)
    utilities: Any = torch.utils
    utilities.deterministic.fill_uninitialized_memory = False  # finds reads of what nobody wrote; costs time
