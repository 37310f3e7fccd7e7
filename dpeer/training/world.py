"""Ranks and their process group. Works the same under torchrun, in a Ray actor and in a single process."""

from __future__ import annotations

import os
import socket
import sys
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed import distributed_c10d as c10d

from dpeer.errors import ClusterError
from dpeer.model.team import ALONE, Team


@dataclass(frozen=True, slots=True)
class World:
    rank: int
    size: int
    device: torch.device
    team: Team = ALONE
    """The ranks that compute packs together with this one: as many in a row."""

    @property
    def teams(self) -> int:
        return self.size // self.team.size

    @property
    def place(self) -> int:
        """Number of this rank's team."""
        return self.rank // self.team.size

    @property
    def speaks(self) -> bool:
        """Whether what is the same on all ranks of a team is counted here."""
        return self.team.rank == 0


_ENVIRONMENT: dict[str, str | None] = {}
"""torchrun's variables as they were before this process joined a group; None: not set."""


def open_store(address: str) -> TCPStore:
    """Where the ranks of a group meet, on a free port (`.port`) that is held from here on: made in rank 0's process."""
    return TCPStore(address, 0, is_master=True, wait_for_workers=False)


def alone(timeout_s: float, *, gpu: bool = False, local_rank: int = 0) -> World:
    """The process group of this process alone."""
    store = open_store("127.0.0.1")
    return start(0, 1, "127.0.0.1", store.port, timeout_s, gpu=gpu, local_rank=local_rank, store=store)


def start(
    rank: int,
    size: int,
    address: str,
    port: int,
    timeout_s: float,
    *,
    gpu: bool,
    local_rank: int = 0,
    join_timeout_s: float | None = None,
    store: Store | None = None,
) -> World:
    """Join the process group of one worker group; every collective fails after `timeout_s` seconds of silence.

    Meeting the others and a first all-reduce may take `join_timeout_s` seconds only, so that a blocked port is found
    out early. ClusterError when they do not succeed. Tensors on GPUs travel by NCCL, all others by gloo. Rank 0 may
    hand over the `store` that it has opened at `address` and `port`; else it opens one there.
    """
    if gpu and not torch.cuda.is_available():
        raise ClusterError(
            f"rank {rank}: this recipe trains on GPUs (cluster.gpus_per_worker), but torch {torch.__version__} in "
            f"{sys.prefix} sees none here. Install a CUDA build of torch (DPEER_GPU=1 make setup), look at "
            "nvidia-smi, or train on the CPU: cluster.gpus_per_worker=0."
        )
    if gpu and local_rank >= (seen := torch.cuda.device_count()):
        raise ClusterError(
            f"rank {rank}: is number {local_rank} on its machine, counted from 0, which shows {seen} GPUs; each rank "
            "needs its own. Start fewer ranks per machine (torchrun --nproc-per-node), or train on the CPU: "
            "cluster.gpus_per_worker=0."
        )
    here = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank, "MASTER_ADDR": address, "MASTER_PORT": port}
    _ENVIRONMENT.update({name: os.environ.get(name) for name in here if name not in _ENVIRONMENT})
    os.environ.update({name: str(value) for name, value in here.items()})
    os.environ["DS_ACCELERATOR"] = "cuda" if gpu else "cpu"
    device = torch.device("cuda", local_rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    limit = timedelta(seconds=timeout_s)
    for default in ("default_pg_timeout", "default_pg_nccl_timeout"):  # DeepSpeed makes groups of its own without one
        setattr(c10d, default, limit)
    joining = min(timeout_s, join_timeout_s or timeout_s)
    if store is not None:
        store.set_timeout(timedelta(seconds=joining))
        store = PrefixStore("default_pg", store)  # as torch does for the ranks that come by an address
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            init_method=None if store else f"tcp://{address}:{port}",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=joining),
        )
        present = torch.ones(1)  # by gloo, which raises; NCCL's watchdog would abort the process
        dist.all_reduce(present)
    except (RuntimeError, dist.DistError) as error:
        raise ClusterError(
            f"rank {rank} of {size} could not meet the others at {address} port {port} within {joining:g} s "
            f"({str(error).strip().splitlines()[0][:200]}). Nodes must reach each other on every port above 1024: look "
            "at firewalls, and at the network interface (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME). A slow start needs a "
            "larger cluster.join_timeout_s."
        ) from error
    assert int(present) == size
    c10d._set_pg_timeout(limit)
    if gpu:
        try:
            meet_by_nccl(device, joining)
        except (RuntimeError, dist.DistError) as error:
            raise ClusterError(
                f"rank {rank} of {size} on host {socket.gethostname()}: the ranks reach each other by TCP, but NCCL's "
                f"first all-reduce failed ({str(error).strip().splitlines()[0][:200]}). Look at the interface "
                "(NCCL_SOCKET_IFNAME, NCCL_IB_HCA), at the room in /dev/shm of containers, and that no two ranks have "
                "the same GPU. NCCL_DEBUG=INFO in the environment makes NCCL say more; a slow start needs a larger "
                "cluster.join_timeout_s."
            ) from error
    return World(rank, size, device)


def meet_by_nccl(device: torch.device, limit_s: float) -> None:
    """One all-reduce, waited for here: NCCL only enqueues it, and reports a failure of it by ending the process."""
    dist.all_reduce(torch.ones(1, device=device))
    cuda: Any = torch.cuda
    done = cuda.Event()
    done.record()
    deadline = time.monotonic() + limit_s
    while not done.query():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not done after {limit_s:g} s")
        time.sleep(0.01)
    torch.cuda.synchronize()  # raises what the device has met


def all_reduce_bandwidth(world: World, size: int = 2**28, rounds: int = 5) -> float:
    """Collective: bus bandwidth in GB/s of an all-reduce of `size` bytes, as nccl-tests count it: what each rank's link
    carries, 2 (n - 1) / n bytes for each byte of the result."""
    vector = torch.zeros(size // 4, device=world.device)
    cuda: Any = torch.cuda
    wait = cuda.synchronize if world.device.type == "cuda" else lambda: None
    dist.all_reduce(vector)  # the first one connects
    wait()
    began = time.perf_counter()
    for _ in range(rounds):
        dist.all_reduce(vector)
    wait()
    seconds = (time.perf_counter() - began) / rounds
    return 2 * (world.size - 1) / world.size * size / seconds / 1e9


@dataclass(frozen=True)
class Ranks:
    """A team of the ranks of a process group."""

    rank: int
    size: int
    group: Any

    def swap(self, parts: Tensor) -> Tensor:
        parts = parts.contiguous()
        arrived = torch.empty_like(parts)
        dist.all_to_all_single(arrived, parts, group=self.group)
        return arrived

    def total(self, values: Tensor) -> Tensor:
        summed = values.clone()
        dist.all_reduce(summed, group=self.group)
        return summed


def in_teams(world: World, size: int) -> World:
    """Collective. This rank in a team of `size`, which divides the number of ranks."""
    if size == 1:
        return replace(world, team=ALONE)
    if size not in _GROUPS:
        _GROUPS[size] = [dist.new_group(range(i, i + size)) for i in range(0, world.size, size)]
    return replace(world, team=Ranks(world.rank % size, size, _GROUPS[size][world.rank // size]))


_GROUPS: dict[int, list[Any]] = {}
"""Process groups of the teams of a size."""


def stop() -> None:
    """Leave the group; the environment is as it was, so that what this process starts next does not take itself for a
    rank of it."""
    _GROUPS.clear()
    for name, value in _ENVIRONMENT.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _ENVIRONMENT.clear()
    if not dist.is_initialized():
        return
    deepspeed = sys.modules.get("deepspeed.comm.comm")
    if deepspeed and deepspeed.cdb:  # it keeps a group of its own, which would outlive this world
        deepspeed.destroy_process_group()
    else:
        dist.destroy_process_group()


def sum_over_ranks(vector: Tensor) -> Tensor:
    """All-reduce one fp64 vector of the CPU, by gloo. The only collective that the method itself adds to a training
    step; it does not wait for what a GPU has to do."""
    total = vector.cpu().clone()
    dist.all_reduce(total)
    return total
