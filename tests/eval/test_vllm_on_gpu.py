"""How vLLM's engines are set up on a GPU: how many, their tasks, their processes, a second try."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from dpeer.eval import config
from dpeer.eval.backends.types import Job, Method
from dpeer.eval.backends.vllm.engine import engine_kwargs, environment, started
from dpeer.eval.backends.vllm.farm import capacity, per_task, replicas, resources
from dpeer.eval.config import Served


def on_gpu(count: int = 0, tensor_parallel: int = 1) -> Job:
    """A job of so many calls whose engines take so many GPUs."""
    return Job(
        Served(name="a", path="a"), config.Engine(tensor_parallel=tensor_parallel), Method("logprob"), "gpu", count
    )


@pytest.mark.parametrize(
    ("free", "tensor_parallel", "engines"), [(math.inf, 1, 8), (5, 1, 5), (5, 2, 2), (1, 2, 1), (0, 1, 1)]
)
def test_engines_follow_the_free_gpus(
    monkeypatch: pytest.MonkeyPatch, free: float, tensor_parallel: int, engines: int
) -> None:
    """Two nodes of four GPUs, of which a training may hold some; one engine waits where none is free."""
    node = {"Alive": True, "Resources": {"CPU": 16.0, "GPU": 4.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [node, node, node | {"Alive": False}])
    assert replicas(config.Farm(), on_gpu(tensor_parallel=tensor_parallel), free) == engines
    assert replicas(config.Farm(replicas=3), on_gpu(), free) == 3


def test_tasks_are_large_on_a_gpu_unless_engines_would_have_none() -> None:
    spec, cpu = config.Farm(), replace(on_gpu(), device="cpu")
    assert per_task(spec, cpu, 1) == per_task(spec, replace(cpu, count=10**6), 1) == 64
    assert per_task(spec, on_gpu(), 8) == per_task(spec, on_gpu(10**5), 8) == 512
    assert per_task(spec, on_gpu(3200), 8) == 200 and per_task(spec, on_gpu(100), 8) == 64
    assert per_task(config.Farm(conversations_per_task=7), on_gpu(10**5), 8) == 7


def test_an_engine_on_a_gpu_has_a_process_and_its_workers_threads() -> None:
    variables = {n: environment(on_gpu(tensor_parallel=n)) for n in (1, 4)}
    assert all(v["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1" for v in variables.values())
    assert "OMP_NUM_THREADS" not in variables[1] and variables[4]["OMP_NUM_THREADS"] == "4"
    cpu = environment(replace(on_gpu(), device="cpu"))
    assert cpu["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0" and cpu["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("nodes", "cores"),
    [
        ([{"CPU": 96.0, "GPU": 8.0}], 4),
        ([{"CPU": 16.0, "GPU": 4.0}, {"CPU": 64.0}], 3),
        ([{"CPU": 96.0, "GPU": 8.0}, {"CPU": 17.0, "GPU": 8.0}], 2),
        ([{"CPU": 2.0, "GPU": 2.0}], 1),
        ([{"CPU": 4.0}], 1),
    ],
)
def test_an_engine_takes_cores_by_its_gpus_and_leaves_one(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], cores: int
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    for gpus in (1, 2):
        assert resources(on_gpu(tensor_parallel=gpus)) == {"CPU": gpus * cores, "GPU": gpus}
    assert resources(replace(on_gpu(), device="cpu")) == {"CPU": 1}
    for node in nodes:
        fitting = capacity(node, resources(on_gpu()))
        assert fitting == node.get("GPU", 0), "cores never keep a GPU idle"


def test_graphs_are_captured_where_many_tokens_are_written(models: Path) -> None:
    def kwargs(mode: Any, **settings: Any) -> dict[str, Any]:
        served = Served(name="a", path=str(models / "a"))
        return engine_kwargs(Job(served, config.Engine(**settings), Method(mode, max_tokens=9), "gpu"))

    chosen = {mode: kwargs(mode)["enforce_eager"] for mode in ("logprob", "structured", "sample")}
    assert chosen == {"logprob": True, "structured": False, "sample": False}
    assert kwargs("sample", eager=True)["enforce_eager"] and not kwargs("logprob", eager=False)["enforce_eager"]


FULL = "Free memory on device cuda:0 (3.1/79.2 GiB) on startup is less than desired GPU memory utilization"


@pytest.mark.parametrize(
    ("device", "faults", "tries"),
    [
        ("gpu", [ValueError(FULL)], 2),
        ("gpu", [RuntimeError("Engine core initialization failed. See root cause above.")], 2),
        ("gpu", [ValueError(FULL)] * 2, None),
        ("gpu", [ValueError("The model's max seq len is larger than the cache")], None),
        ("cpu", [ValueError(FULL)], None),
    ],
)
def test_an_engine_without_room_is_made_once_more(device: Any, faults: list[Exception], tries: int | None) -> None:
    """None: its fault is told."""
    made, slept = [], list[float]()

    def make() -> Any:
        made.append(1)
        if len(made) <= len(faults):
            raise faults[len(made) - 1]
        return "engine"

    if tries is None:
        with pytest.raises(type(faults[-1]), match=str(faults[-1])[:20]):
            started(make, device, slept.append)
        assert len(made) == len(faults)
    else:
        engine: Any = started(make, device, slept.append)
        assert engine == "engine" and len(made) == tries
    assert len(slept) == len(made) - 1
