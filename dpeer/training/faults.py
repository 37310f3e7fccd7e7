"""What an exception on a rank says about a run: start it again, leave a machine, or change the recipe."""

from __future__ import annotations

import re
from typing import Literal

from dpeer.config import Config
from dpeer.errors import ClusterError

Kind = Literal["memory", "device", "collective", "own"]
"""`memory`: the GPU's is exhausted. `device`: a GPU failed. `collective`: another rank, or the network between them,
left this one waiting. `own`: anything else, the fault of what this rank did or was given."""

MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "Cuda failure 2 'out of memory'",
    "Cuda failure 'out of memory'",
    "STATUS_ALLOC_FAILED",
    "STATUS_NOT_INITIALIZED",  # cuBLAS found no room for its workspace
)
# CUDA's complaints about the program or the set-up: they come again on any other GPU.
OURS = (
    "device-side assert",
    "no kernel image",
    "illegal memory access",
    "misaligned address",
    "illegal instruction",
    "invalid device ordinal",
    "invalid device function",
    "invalid argument",
    "STATUS_INVALID_VALUE",
    "STATUS_NOT_SUPPORTED",
    "invalid configuration argument",
    "driver version is insufficient",
    "not supported",
    "ncclInvalidUsage",
    "ncclInvalidArgument",
    "Duplicate GPU",
)
DEVICE = ("CUDA error", "Cuda failure", "uncorrectable ECC", "uncorrectable NVLink", "Xid", "fallen off the bus")
COLLECTIVE = (
    "gloo",
    "NCCL error",
    "NCCL communicator",
    "ncclRemoteError",
    "ncclSystemError",
    "Connection reset by peer",
    "Connection closed by peer",
)


def kind(error: BaseException) -> Kind:
    """By type where torch has one, else by the words of CUDA, NCCL and gloo: most arrive as a RuntimeError."""
    name, text = type(error).__name__, str(error)
    if name == "OutOfMemoryError" or any(words in text for words in MEMORY):
        return "memory"
    if not isinstance(error, RuntimeError) or any(words in text for words in OURS):
        return "own"
    if name == "AcceleratorError" or any(words in text for words in DEVICE):
        return "device"
    if name.startswith("Dist") or any(words in text for words in COLLECTIVE):
        return "collective"
    return "own"


def tells_of_device(text: str) -> bool:
    """Whether a line of a dead process's stderr blames a GPU: NCCL's watchdog aborts without an exception."""
    lines = (line for line in text.splitlines() if any(words in line for words in DEVICE))
    return any(not any(words in line for words in (*OURS, *MEMORY)) for line in lines)


class OutOfMemory(ClusterError):
    """The memory of a GPU does not hold what the recipe asks for."""


def out_of_memory(error: BaseException, config: Config, phase: str, longest: int) -> OutOfMemory:
    """`longest`: forward tokens of the longest record, 0 where no data has been read."""
    held = re.search(r"([\d.]+ [KMG]iB) is allocated by PyTorch, and ([\d.]+ [KMG]iB) is reserved", str(error))
    wanted = re.search(r"Tried to allocate ([\d.]+ [KMG]iB)", str(error))
    facts = [f"{wanted[1]} more were asked for"] if wanted else []
    facts += [f"torch had allocated {held[1]} and reserved another {held[2]}"] if held else []
    shown = f" ({'; '.join(facts)})" if facts else ""
    budget = config.training.tokens_per_pack
    if longest > budget:
        lower = (
            f"The largest pack is a record of {longest} tokens, which gets one of its own above "
            f"training.tokens_per_pack ({budget}): lower data.max_tokens ({config.data.max_tokens}) and "
            "training.tokens_per_pack"
        )
    else:
        lower = f"The largest pack has up to {budget} tokens: lower training.tokens_per_pack"
    checkpointing = ", set model.gradient_checkpointing"
    if config.model.gradient_checkpointing:
        checkpointing = "" if config.model.offload_activations else ", set model.offload_activations"
    return OutOfMemory(
        f"GPU memory is exhausted during '{phase}'{shown}. {lower}"
        f"{checkpointing}, spread the model over more GPUs (cluster.policy_workers), share long records among them "
        "(training.sequence_parallel), or train an adapter (model.lora). "
        "`dpeer plan` says what fits. The last checkpoint is kept."
    )
