"""One rank in this process, tiny models and a few records."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from dpeer.config import Config
from dpeer.data.tokenize import TokenizedSet, TokenTree
from dpeer.toyworld.model import tiny_model
from dpeer.training import world
from dpeer.training.policy import Policy
from dpeer.training.prepare import Prepared

TIMEOUT_S = 77.0


def recipe(path: str = "model", **model: Any) -> Config:
    return Config.model_validate(
        {
            "name": "x",
            "model": {"path": path, "dtype": "fp32"} | model,
            "data": {"train": "d.jsonl"},
            "training": {"steps": 3, "records_per_step": 2, "optimizer": {"grad_clip": 0.7}},
            "cluster": {"deepspeed": "cpu", "reference_deepspeed": "cpu"},
        }
    )


@pytest.fixture(scope="module")
def here() -> Iterator[world.World]:
    """A process group of this process alone."""
    before = dict(os.environ)
    yield world.alone(TIMEOUT_S)
    world.stop()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("canary")
    dynamic = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    made = {
        "plain": tiny_model(root / "plain", "qwen3", 3, vocab=300),
        "dynamic": tiny_model(
            root / "dynamic", "llama", 3, vocab=300, rope_parameters=dynamic, max_position_embeddings=8
        ),
    }
    return {name: str(path) for name, path in made.items()}


def records() -> tuple[TokenTree, ...]:
    """The shortest record with siblings is the third; the first has none."""
    return (
        TokenTree(0, (5, 6), ((7, 8),), (), 0, ("A",)),
        TokenTree(1, tuple(range(10, 40)), ((50, 51, 52), (53, 54), (55,)), ((0, 0, 1), (0, 0, 2)), 0, ("A",)),
        TokenTree(
            2, tuple(range(60, 66)), ((90, 91, 92, 93), (94, 95, 96, 97, 98, 99), (90,)), ((0, 0, 1),), 0, ("A",)
        ),
    )


@pytest.fixture
def data() -> TokenizedSet:
    return TokenizedSet(("A",), records(), 0, 0)


def sft(path: str, engine: str, **model: Any) -> Config:
    """Steps of two micro-batches, without a reference."""
    base = recipe(path, **model)
    changes = {"tokens_per_pack": 10, "optimizer": {"lr": 1e-3, "warmup": 0, "grad_clip": 0.05, "weight_decay": 0.1}}
    return Config.model_validate(
        base.model_dump()
        | {"output_dir": Path(path).parent / "runs", "objective": {"kind": "sft"}}
        | {"training": base.training.model_dump() | changes, "cluster": base.cluster.model_dump() | {"engine": engine}}
    )


@pytest.fixture
def make(here: world.World, data: TokenizedSet) -> Iterator[Callable[[Config], Policy]]:
    """Policies that are closed when the test is over."""
    made: list[Policy] = []

    def build(config: Config) -> Policy:
        made.append(Policy(config, Prepared(data, None, None, {"chat_template": {}}), here))
        return made[-1]

    yield build
    for policy in made:
        policy.close()


def gradients(policy: Policy) -> dict[str, Tensor]:
    """As the optimizer is about to use them."""
    from deepspeed.utils import safe_get_full_grad

    read = safe_get_full_grad if policy.engine.name == "deepspeed" else lambda p: p.grad
    named = policy.engine.module.named_parameters()
    return {name: read(p).detach().clone() for name, p in named if p.requires_grad}
