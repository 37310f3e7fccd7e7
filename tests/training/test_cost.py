"""What a step costs: arithmetic by hand, the GPU's clock and memory through fakes, the line that is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from dpeer.config import Config
from dpeer.data.tokenize import TokenTree
from dpeer.estimate.footprint import count_weights
from dpeer.launcher.memory_watch import MemoryWatch
from dpeer.launcher.progress import describe
from dpeer.model.flops import Lengths, model_flops, training_flops
from dpeer.model.lm import build_lm
from dpeer.toyworld.model import tiny_model
from dpeer.training import meter
from dpeer.training.cost import PHASES, StepCost, cost
from dpeer.training.meter import Clock, LiveCounts, Meter, ceiling
from dpeer.training.rank import TrainingRank


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    path = tiny_model(tmp_path / "model", "qwen3", 0, vocab=400, texts=["a b c"])

    def make(**model: Any) -> Config:
        recipe = {"name": "x", "data": {"train": "d"}, "training": {"steps": 1}}
        return Config.model_validate(recipe | {"model": {"path": str(path), "dtype": "fp32"} | model})

    return make


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_arithmetic_by_hand(config: Callable[..., Config], lora: Any) -> None:
    """2 FLOPs per weight and token and 4 per attended pair and width; backward twice that, half with frozen weights."""
    spec = config(lora=lora, gradient_checkpointing=True).model
    counts = LiveCounts.of(build_lm(spec, 0).model)
    planned = count_weights(spec, AutoConfig.from_pretrained(spec.path))
    for name in ("total", "layers", "embedding", "head", "tied", "attention_width", "attending", "state"):
        assert getattr(counts, name) == getattr(planned, name), name
    record = Lengths.of(TokenTree(0, (1,) * 10, ((2,) * 5, (3,) * 4), (), 0, ()))
    inner = counts.total - counts.embedding - (0 if counts.tied else counts.head)
    pairs = 10 * 10 / 2 + (5 * 10 + 5 * 5 / 2) + (4 * 10 + 4 * 4 / 2)
    layers = 2 * inner * (10 + 4 + 3) + 4 * counts.layers * counts.attention_width * pairs
    head = 2 * counts.head * 9
    assert model_flops(spec, counts, [record]) == (2 if lora else 3) * (layers + head)
    assert training_flops(spec, counts, [record]) == (3 if lora else 4) * layers + (2 if lora else 4) * head


class Event:
    """A CUDA event on a device whose time moves by one second per record."""

    now, waits = 0.0, 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at: float | None = None

    def record(self) -> None:
        Event.now += 1
        self.at = Event.now

    def synchronize(self) -> None:
        Event.waits += 1

    def elapsed_time(self, end: Event) -> float:
        assert self.at is not None and end.at is not None
        return 1000 * (end.at - self.at)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    Event.now, Event.waits = 0.0, 0
    randn = torch.randn
    for name, value in {
        "Event": Event,
        "max_memory_allocated": lambda _: 3 * 2**30,
        "max_memory_reserved": lambda _: 4 * 2**30,
        "reset_peak_memory_stats": lambda _: None,
        "empty_cache": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "randn", lambda *shape, device, dtype: randn(*shape, dtype=dtype))
    monkeypatch.setattr(meter, "ceiling", lambda *_: 1e12)
    return torch.device("cuda")


def test_the_ceiling_is_the_rate_of_a_matrix_product(gpu: torch.device) -> None:
    assert ceiling(gpu, torch.bfloat16, 64, rounds=4) == 2 * 64**3 * 4  # four products in the fake's one second
    assert ceiling(torch.device("cpu"), torch.bfloat16) is None


def test_a_gpus_clock_waits_once_however_many_packs(gpu: torch.device) -> None:
    clock = Clock(gpu)
    clock.start()
    for _ in range(5):
        clock.mark("forward")
        clock.mark("backward")
    clock.mark("optimizer")
    assert Event.waits == 0
    expected = {"reference": 0.0, "forward": 5.0, "backward": 5.0, "dual": 0.0, "exchange": 0.0, "optimizer": 1.0}
    assert clock.seconds() == expected and Event.waits == 1


def test_a_step_on_a_gpu_and_on_cpu(config: Callable[..., Config], gpu: torch.device) -> None:
    spec = config()
    model, tree = build_lm(spec.model, 0), TokenTree(0, (1,) * 10, ((2,) * 5, (3,) * 4), ((0, 0, 1),), 0, ())
    found = []
    for device in (gpu, torch.device("cpu")):
        measured = Meter(spec, model, device)
        measured.start()
        measured.mark("forward", 17)
        measured.mark("backward")
        found.append(measured.cost([tree], [tree]))
    on_gpu, on_cpu = found
    trained, forward = training_flops(spec.model, LiveCounts.of(model.model), [Lengths.of(tree)]), on_gpu["model_flops"]
    assert on_gpu["flops"] > trained and on_gpu["flops"] - forward == pytest.approx(trained - forward * 3 / 4)
    assert (on_gpu["memory_allocated"], on_gpu["memory_reserved"]) == (3 * 2**30, 4 * 2**30)
    assert (on_gpu["prompt_tokens"], on_gpu["response_tokens"], on_gpu["responses"]) == (10, 4, 2)
    assert on_gpu["largest_pack"] == 17 and on_gpu["seconds"]["forward"] == 1
    assert on_cpu["memory_allocated"] is None and on_cpu["seconds"]["forward"] > 0


def test_a_colocated_reference_has_a_phase_of_its_own(config: Callable[..., Config]) -> None:
    said: list[str] = []
    clock = SimpleNamespace(start=lambda: said.append("start"), mark=said.append)
    rank = object.__new__(TrainingRank)
    rank.config = config()
    rank.policy = SimpleNamespace(meter=clock, train_step=lambda references: {"step": references})  # type: ignore
    rank._own_references = lambda: (said.append("scored"), 7)[1]  # type: ignore
    assert rank.train_step() == {"step": 7}
    assert said == ["start", "scored", "reference"]


def step_cost(**changes: Any) -> StepCost:
    made: Any = {
        "seconds": dict.fromkeys(PHASES, 0.2), "flops": 6e12, "model_flops": 4.5e12, "ceiling": 2e12,
        "largest_pack": 900, "prompt_tokens": 300, "response_tokens": 100, "responses": 5,
        "memory_allocated": 10 * 2**30, "memory_reserved": 12 * 2**30,
    }  # fmt: skip
    return made | changes


ENTRY = {"step": 3, "tokens": 4000, "packs": 8, "golden_nll": 1.0, "dimensions": {}, "constraints": {}}


def test_a_line_of_timing() -> None:
    ranks = [step_cost(), step_cost(memory_allocated=11 * 2**30, largest_pack=1000, ceiling=1e12)]
    row = cost(ENTRY, ranks, 4.0, 0.5)
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert row["hfu"] == 6e12 / 4 / 3e12 and row["mfu"] == 4.5e12 / 4 / 3e12
    assert row["memory_allocated"] == 11 * 2**30 and row["largest_pack"] == 1000
    assert row["tokens_per_micro_step"] == 500 and row["tokens_per_second"] == 1000
    assert row["phases"]["forward"] == pytest.approx(0.2)
    assert describe(ENTRY, row) == "loss NLL 1.000  1,000 tok/s  HFU 50%  11.0/12.0 GiB"
    bare = cost(ENTRY, [step_cost(ceiling=None, memory_allocated=None, memory_reserved=None)], 4.0, 0.5)
    assert bare["hfu"] is bare["mfu"] is bare["memory_allocated"] is None
    assert describe(ENTRY, bare) == "loss NLL 1.000  1,000 tok/s"


def watched(planned: Callable[..., float], *packs: tuple[int, int | None]) -> list[str | None]:
    watch = MemoryWatch(SimpleNamespace(), planned)  # type: ignore[arg-type]
    said = []
    for largest, taken in packs:
        row = cost(ENTRY, [step_cost(largest_pack=largest, memory_allocated=taken)], 1.0, 0.0)
        said.append(watch.warning(row))
        if watch.planned:
            watch.planned.exception(timeout=10)  # until the plan is there
    return said


def test_more_memory_than_planned_is_told_once() -> None:
    gib = 2**30

    def planned(_: Any, row: Any) -> float:
        return float(row["largest_pack"] * gib)

    first, second, third = watched(planned, (10, 11 * gib), (10, 11 * gib), (10, 12 * gib))
    assert first is third is None and second is not None
    assert (
        "took 11.0 GiB" in second
        and "at most 10.0 GiB for packs of 10 tokens" in second
        and "tokens_per_pack" in second
    )
    assert watched(planned, (10, 9 * gib), (10, 10 * gib), (12, 11 * gib), (12, 11 * gib)) == [None] * 4
    assert watched(planned, (10, None), (10, None)) == [None, None]


def test_a_plan_that_fails_ends_no_run() -> None:
    def broken(*_: Any) -> float:
        raise RuntimeError("no such model here")

    assert watched(broken, (10, 11), (10, 12)) == [None, None]
