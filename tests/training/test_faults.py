"""How exceptions of ranks are read: fakes with the words of CUDA, NCCL and gloo, as torch raises them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dpeer.config import Config
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.errors import ClusterError
from dpeer.training.faults import Kind, kind, tells_of_device
from dpeer.training.prepare import Prepared
from dpeer.training.pulse import Pulse
from dpeer.training.rank import carry_out

OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB. "
    "Of the allocated memory 70.11 GiB is allocated by PyTorch, and 6.50 GiB is reserved by PyTorch but unallocated."
)
ACCELERATOR: Any = getattr(torch, "AcceleratorError", RuntimeError)
FAULTS: list[tuple[Exception, Kind]] = [
    (dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited"), "collective"),
    (dist.DistNetworkError("The client socket has failed to connect to any network address"), "collective"),
    (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:3422"), "collective"),
    (
        RuntimeError("[1] is setting up NCCL communicator and retrieving ncclUniqueId: Connection reset by peer"),
        "collective",
    ),
    (ACCELERATOR("CUDA error: uncorrectable ECC error encountered"), "device"),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), "own"),
    (dist.DistBackendError("ncclUnhandledCudaError: Last error: Cuda failure 214 'uncorrectable ECC error'"), "device"),
    (RuntimeError("GPU 0000:41:00.0: Xid 79, GPU has fallen off the bus"), "device"),
    (torch.OutOfMemoryError(OUT_OF_MEMORY), "memory"),
    (ACCELERATOR("CUDA error: out of memory"), "memory"),
    (dist.DistBackendError("NCCL error: unhandled cuda error. Cuda failure 2 'out of memory'"), "memory"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "memory"),
    (ACCELERATOR("CUDA error: device-side assert triggered"), "own"),
    (RuntimeError("CUDA error: no kernel image is available for execution on the device"), "own"),
    (dist.DistBackendError("NCCL error: ncclInvalidUsage: Duplicate GPU detected"), "own"),
    (ValueError("gloo is the name of a persona"), "own"),
    (ConnectionResetError("Connection reset by peer"), "own"),
    (RuntimeError("shape mismatch"), "own"),
]


@pytest.mark.parametrize(("error", "expected"), FAULTS, ids=[f"{e}: {str(f)[:40]}" for f, e in FAULTS])
def test_kinds(error: Exception, expected: Kind) -> None:
    assert kind(error) == expected


def test_the_last_words_of_a_dead_process_may_blame_its_gpu() -> None:
    watchdog = "[rank1] Process group watchdog thread terminated with exception: CUDA error: {}\n*** SIGABRT received"
    assert tells_of_device(watchdog.format("uncorrectable ECC error encountered"))
    assert not tells_of_device(watchdog.format("device-side assert triggered"))
    assert not tells_of_device("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE)")


@pytest.mark.parametrize(
    ("responses", "says"), [(1, "The largest pack has up to 64 tokens"), (9, "a record of 91 tokens")]
)
def test_exhausted_memory_says_what_to_lower(responses: int, says: str) -> None:
    tree = TokenTree(0, tuple(range(10)), tuple((1,) * 10 for _ in range(responses)), golden=0, edges=(), mask=())
    config = Config.model_validate(
        {"name": "x", "model": {"path": "m"}, "data": {"train": "d"}, "training": {"steps": 1, "tokens_per_pack": 64}}
    )

    def train_step() -> None:
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    def save() -> None:
        raise RuntimeError("disk")

    prepared = Prepared(TokenizedSet(("A",), (tree,), 0, 0), None, None, {})
    pulse = Pulse("step 3: forward and backward", beating=True)
    what = {"config": config, "prepared": prepared, "pulse": pulse, "layout": "tree"}
    rank: Any = SimpleNamespace(**what, train_step=train_step, save=save)
    with pytest.raises(ClusterError, match="during 'step 3: forward and backward'") as caught:
        carry_out(rank, "train_step")
    for words in (
        says,
        "training.tokens_per_pack",
        "allocated 70.11 GiB and reserved another 6.50 GiB",
        "2.00 GiB more",
    ):
        assert words in str(caught.value)
    with pytest.raises(RuntimeError, match="disk"):
        carry_out(rank, "save")
