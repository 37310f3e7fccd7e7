"""Ranks and their process group. Works the same under torchrun, in a Ray actor and in a single process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as c10d

from dpeer.errors import ClusterError


@dataclass(frozen=True, slots=True)
class World:
    rank: int
    size: int
    device: torch.device


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
) -> World:
    """Join the process group of one worker group; every collective fails after `timeout_s` seconds of silence.

    Meeting the others and a first all-reduce may take `join_timeout_s` seconds only, so that a blocked port is found
    out early. ClusterError when they do not succeed.
    """
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(local_rank), MASTER_ADDR=address, MASTER_PORT=str(port)
    )
    os.environ["DS_ACCELERATOR"] = "cuda" if gpu else "cpu"
    device = torch.device("cuda", local_rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    limit = timedelta(seconds=timeout_s)
    for default in ("default_pg_timeout", "default_pg_nccl_timeout"):  # DeepSpeed makes groups of its own without one
        setattr(c10d, default, limit)
    joining = min(timeout_s, join_timeout_s or timeout_s)
    try:
        dist.init_process_group(
            "nccl" if gpu else "gloo",
            init_method=f"tcp://{address}:{port}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=joining),
        )
        present = torch.ones(1, device=device)
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
    return World(rank, size, device)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(vector: Tensor, world: World) -> Tensor:
    """All-reduce one fp64 vector. The only collective that the method itself adds to a training step."""
    on_device = vector.to(world.device)
    dist.all_reduce(on_device)
    return on_device.cpu()
