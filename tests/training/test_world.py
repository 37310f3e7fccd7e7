"""Joining on GPUs, with fakes for what is not here: gloo first, then NCCL, each told apart when it fails."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dpeer.config import Config
from dpeer.errors import ClusterError
from dpeer.training import world
from dpeer.training.environment import gpu_variables, set_defaults

CONFIG = {"name": "x", "model": {"path": "m"}, "data": {"train": "d"}, "training": {"steps": 1}}


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(os.environ)
    yield
    world.stop()
    os.environ.clear()
    os.environ.update(before)


def join(monkeypatch: pytest.MonkeyPatch, done: bool, synchronize: Callable[[], None] = lambda: None) -> list[str]:
    """`world.start` on a GPU that is not there; returns the back ends that were asked for. `done`: NCCL's answer."""
    asked, real, ones = [], dist.init_process_group, torch.ones

    class Event:
        def record(self) -> None: ...
        def query(self) -> bool:
            return done

    def init(backend: str, **options: Any) -> None:
        asked.append(backend)
        real(backend.replace("nccl", "gloo"), **options)

    for name, fake in {
        "is_available": lambda: True, "set_device": lambda device: None, "Event": Event, "synchronize": synchronize
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(dist, "init_process_group", init)
    monkeypatch.setattr(torch, "ones", lambda n, device=None: ones(n))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world.start(0, 1, "127.0.0.1", port, 30, gpu=True, join_timeout_s=2 if done else 0.2)
    return asked


def test_gpu_ranks_meet_by_gloo_and_by_nccl(monkeypatch: pytest.MonkeyPatch, clean: None) -> None:
    assert join(monkeypatch, done=True) == ["cpu:gloo,cuda:nccl"]
    vector = torch.tensor([1 / 3], dtype=torch.float64)
    assert world.sum_over_ranks(vector).equal(vector)


def test_nccl_that_never_answers_is_told_by_an_error(monkeypatch: pytest.MonkeyPatch, clean: None) -> None:
    with pytest.raises(
        ClusterError, match=r"reach each other by TCP, but NCCL.*not done after 0.2 s.*NCCL_SOCKET_IFNAME"
    ):
        join(monkeypatch, done=False)


def test_fault_of_the_first_all_reduce_is_told_by_an_error(monkeypatch: pytest.MonkeyPatch, clean: None) -> None:
    def fails() -> None:
        raise RuntimeError("CUDA error: invalid access of peer GPU memory over nvlink")

    with pytest.raises(ClusterError, match="peer GPU memory over nvlink"):
        join(monkeypatch, done=True, synchronize=fails)


def test_gpus_that_torch_does_not_see_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ClusterError, match=r"CUDA build of torch.*gpus_per_worker=0"):
        world.start(0, 1, "127.0.0.1", 1, 30, gpu=True)


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_variables_never_override_the_users(tmp_path: Any, clean: None, name: str) -> None:
    config = Config.model_validate(CONFIG | {"output_dir": tmp_path})
    os.environ |= {name: "max_split_size_mb:64", "NCCL_DEBUG": "INFO"}
    set_defaults(gpu_variables(config, "policy"))
    assert os.environ["NCCL_DEBUG"] == "INFO"
    assert {k for k in os.environ if k.endswith("ALLOC_CONF")} == {name} and os.environ[name] == "max_split_size_mb:64"
    assert os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    assert os.environ["TORCH_NCCL_DEBUG_INFO_TEMP_FILE"] == f"{tmp_path}/x/nccl/policy-"
    assert (tmp_path / "x" / "nccl").is_dir()
    del os.environ[name]
    set_defaults(gpu_variables(config, "policy"))
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
