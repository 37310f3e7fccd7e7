"""How vLLM's engines are set up on a GPU: how many, their tasks, their processes, a second try."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from dpeer.errors import ClusterError
from dpeer.eval import config
from dpeer.eval.backends.types import Job, Method
from dpeer.eval.backends.vllm.engine import engine_kwargs, environment, started
from dpeer.eval.backends.vllm.farm import capacity, check_feasible, per_task, replicas, resources
from dpeer.eval.config import Served


def on_gpu(count: int = 0, tensor_parallel: int = 1) -> Job:
    """A job of so many calls whose engines take so many GPUs."""
    return Job(
        Served(name="a", path="a"), config.Engine(tensor_parallel=tensor_parallel), Method("logprob"), "gpu", count
    )


def on_nodes(monkeypatch: pytest.MonkeyPatch, *nodes: tuple[float, float]) -> None:
    """A cluster of nodes with so many cores and GPUs, besides one that is dead."""
    known = [{"Alive": True, "Resources": node} for node in held(*nodes)]
    monkeypatch.setattr(ray, "nodes", lambda: [*known, {"Alive": False, "Resources": {"CPU": 1.0, "GPU": 64.0}}])


def held(*nodes: tuple[float, float]) -> list[dict[str, float]]:
    """As Ray tells it: a kind that a node has none of is left out."""
    return [{k: v for k, v in (("CPU", cpus), ("GPU", gpus)) if v} for cpus, gpus in nodes]


@pytest.mark.parametrize(
    ("free", "tensor_parallel", "engines", "cores"),
    [
        (None, 1, 8, 3),
        ([(16, 4), (4, 1)], 1, 5, 3),
        ([(16, 4), (4, 1)], 2, 2, 7),
        ([(16, 3), (16, 1)], 2, 1, 7),
        ([(6, 4), (16, 4)], 1, 8, 1),
        ([(2.5, 4), (16, 2)], 1, 4, 1),
        ([(0, 4), (16, 4)], 1, 4, 3),
        ([(9, 4), (0, 4)], 4, 1, 8),
        ([(0, 4), (0, 4)], 1, 1, 1),
        ([(16, 1), (0, 0)], 2, 1, 1),
        ([(16, 0), (16, 0)], 1, 1, 1),
    ],
)
def test_engines_and_their_cores_follow_what_others_leave(
    monkeypatch: pytest.MonkeyPatch,
    free: list[tuple[float, float]] | None,
    tensor_parallel: int,
    engines: int,
    cores: int,
) -> None:
    """Two nodes of four GPUs, of which a training may hold some; one engine waits where none is free."""
    on_nodes(monkeypatch, (16, 4), (16, 4))
    job, left = on_gpu(tensor_parallel=tensor_parallel), None if free is None else held(*free)
    assert replicas(config.Farm(), job, left) == engines
    assert resources(job, left) == {"CPU": cores, "GPU": tensor_parallel}
    assert replicas(config.Farm(replicas=3), job, left) == 3
    check_feasible(8 // tensor_parallel, resources(job, left), "a")


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
        ([(96, 8)], [4, 8, 16]),
        ([(16, 4), (64, 0)], [3, 7, 15]),
        ([(96, 8), (17, 8)], [2, 4, 8]),
        ([(96, 8), (2, 1)], [1, 8, 16]),
        ([(2, 4)], [1, 1, 1]),
        ([(4, 8)], [1, 1, 1]),
        ([(7, 8)], [1, 1, 3]),
        ([(4, 0)], [1, 1, 1]),
    ],
)
def test_an_engine_takes_cores_by_its_gpus_and_leaves_one(
    monkeypatch: pytest.MonkeyPatch, nodes: list[tuple[float, float]], cores: list[int]
) -> None:
    on_nodes(monkeypatch, *nodes)
    assert resources(replace(on_gpu(), device="cpu")) == {"CPU": 1}
    for gpus, taken in zip((1, 2, 4), cores, strict=True):
        wanted = resources(on_gpu(tensor_parallel=gpus))
        assert wanted == {"CPU": taken, "GPU": gpus}
        for node in nodes:
            most = min(node[0], node[1] // gpus)
            assert capacity(*held(node), wanted) == most, "cores keep no GPU idle but where they are fewer than engines"


def test_a_node_of_few_cores_runs_an_engine_on_all_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    on_nodes(monkeypatch, (4, 8))
    check_feasible(1, resources(on_gpu(tensor_parallel=8)), "a")


@pytest.mark.parametrize(
    ("node", "tensor_parallel", "advice"),
    [
        ((4, 8), 1, "Set farm.replicas=4"),
        ((4, 1), 2, "Set engine.device=cpu .*, lower engine.tensor_parallel"),
        ((0, 8), 1, "Start the node's Ray with a core more"),
    ],
)
def test_what_lacks_is_what_the_error_names(
    monkeypatch: pytest.MonkeyPatch, node: tuple[float, float], tensor_parallel: int, advice: str
) -> None:
    on_nodes(monkeypatch, node)
    with pytest.raises(ClusterError, match=advice):
        check_feasible(8, resources(on_gpu(tensor_parallel=tensor_parallel)), "a")


def test_graphs_are_captured_where_many_tokens_are_written(models: Path) -> None:
    def kwargs(mode: Any, device: Any = "gpu", **settings: Any) -> dict[str, Any]:
        served = Served(name="a", path=str(models / "a"))
        return engine_kwargs(Job(served, config.Engine(**settings), Method(mode, max_tokens=9), device))

    chosen = {mode: kwargs(mode)["enforce_eager"] for mode in ("logprob", "structured", "sample")}
    assert chosen == {"logprob": True, "structured": False, "sample": False}
    assert all(kwargs(mode, "cpu", eager=False)["enforce_eager"] for mode in chosen)
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
