"""Joining on GPUs, with fakes for what is not here: gloo first, then NCCL, each told apart when it fails."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dpeer.config import Config
from dpeer.errors import ClusterError
from dpeer.training import numerics as module
from dpeer.training import world
from dpeer.training.environment import DETERMINISM, gpu_variables, set_defaults, set_determinism
from tests.training.conftest import TIMEOUT_S

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
        "is_available": lambda: True, "device_count": lambda: 1, "set_device": lambda device: None, "Event": Event,
        "synchronize": synchronize,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(dist, "init_process_group", init)
    monkeypatch.setattr(torch, "ones", lambda n, device=None: ones(n))
    store = world.open_store("127.0.0.1")
    limit_s = 2 if done else 0.2
    world.start(0, 1, "127.0.0.1", store.port, 30, gpu=True, join_timeout_s=limit_s, store=store)
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


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ClusterError, match=r"shows 2 GPUs; each rank needs its own.*--nproc-per-node"):
        world.start(2, 3, "127.0.0.1", 1, 30, gpu=True, local_rank=2)


def test_a_process_that_has_left_its_group_is_no_rank(clean: None) -> None:
    """It may join another, and what it starts does not look for the first one."""
    os.environ.pop("RANK", None)
    os.environ["MASTER_PORT"] = "1"
    for _ in range(2):
        world.alone(30)
        assert os.environ["RANK"] == "0" and os.environ["MASTER_PORT"] != "1"
        world.stop()
        assert "RANK" not in os.environ and os.environ["MASTER_PORT"] == "1"


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_variables_never_override_the_users(tmp_path: Path, clean: None, name: str) -> None:
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


def test_determinism_is_of_kernels_and_of_libraries(tmp_path: Path, clean: None) -> None:
    config = Config.model_validate(CONFIG | {"output_dir": tmp_path, "training": {"steps": 1, "deterministic": True}})
    assert gpu_variables(config, "policy").items() >= DETERMINISM.items()
    assert not DETERMINISM.keys() & gpu_variables(Config.model_validate(CONFIG), "policy").keys()
    set_determinism(True)
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    set_determinism(False)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("kind", ["Kernel Module", "Open Kernel Module for x86_64"])
def test_numerics_of_a_gpu_name_its_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    (tmp_path / "version").write_text(
        f"NVRM version: NVIDIA UNIX x86_64 {kind}  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
    )
    monkeypatch.setattr(module, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(module, "package_version", {"nvidia-cublas-cu12": "12.8.4.1"}.get)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    gpu = ["NVIDIA H200", torch.__version__, "CUDA 12.8", "cuBLAS 12.8.4.1", "driver 550.54.15"]
    assert module.numerics(torch.device("cuda", 0)) == gpu
    (tmp_path / "version").unlink()
    assert module.numerics(torch.device("cuda", 0))[-1] == "driver unknown"
    assert len(module.numerics(torch.device("cpu"))) == 2


def test_bandwidth_counts_what_each_link_carries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four ranks, 1 MB in 1 ms: 1.5 MB per link and ms."""
    clock = [0.0]

    def all_reduce(vector: torch.Tensor) -> None:
        assert vector.numel() * vector.element_size() == 10**6
        clock[0] += 1e-3

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr("dpeer.training.world.time.perf_counter", lambda: clock[0])
    here = world.World(0, 4, torch.device("cpu"))
    assert world.all_reduce_bandwidth(here, 10**6) == pytest.approx(1.5)


def test_every_process_group_inherits_the_timeout(here: world.World) -> None:
    """DeepSpeed clones the world group without a timeout; the default must then be ours."""
    clone = dist.new_group([0])
    assert clone._get_backend(torch.device("cpu")).options._timeout.total_seconds() == pytest.approx(TIMEOUT_S)


def test_the_port_where_ranks_meet_is_held_until_they_do() -> None:
    store = world.open_store("127.0.0.1")
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", store.port))
