"""The policy as the reference that it is before its first step."""

from __future__ import annotations

from typing import Any

import pytest

from dpeer.config import Cluster
from dpeer.data.tokenize import TokenizedSet
from dpeer.training import world
from dpeer.training.calls import ReferenceCalls, Scores
from dpeer.training.fill import CACHE_SLICE, _scored
from dpeer.training.prepare import Prepared
from dpeer.training.rank import TrainingRank
from dpeer.training.reference import Reference
from tests.training.conftest import recipe

MODELS: dict[str, dict[str, Any]] = {
    "full": {},
    "full-bf16": {"dtype": "bf16"},
    "lora-bf16": {"dtype": "bf16", "lora": {"rank": 4}, "gradient_checkpointing": True},
    "dora": {"lora": {"rank": 4, "dora": True, "rslora": True}},
}


@pytest.mark.parametrize("engine", ["deepspeed", "plain"])
@pytest.mark.parametrize("model", MODELS)
def test_a_fresh_policy_scores_as_a_reference_of_its_own_does(
    here: world.World, models: dict[str, str], data: TokenizedSet, engine: str, model: str
) -> None:
    """To the bit; once it has taken a step it refuses."""
    cluster = Cluster.model_validate({"deepspeed": "cpu", "reference_deepspeed": "cpu", "engine": engine})
    given = recipe(models["plain"], **MODELS[model])
    config = given.model_copy(
        update={"cluster": cluster, "objective": given.objective.model_copy(update={"kind": "sft"})}
    )
    separate = Reference(config, here)
    expected = separate.score(data.trees[1:])
    separate.close()
    rank = TrainingRank(config, here, Prepared(data, None, data, {}))
    assert rank.score_start("heldout", 1, 3) == expected and rank.policy.engine.module.training
    rank.train_step()
    with pytest.raises(AssertionError, match="a policy of 1 steps"):
        rank.score_start("heldout", 1, 3)
    rank.close()


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ({}, True),
        ({"lora": {"rank": 4}}, True),
        ({"reference_path": "model"}, True),
        ({"reference_path": "other"}, False),
        ({"revision": "a", "reference_revision": "b"}, False),
        ({"lora": {"path": "adapter"}}, False),
        ({"lora": {"path": "adapter"}, "reference_path": "model"}, False),
        ({"lora": {"rank": 4}, "load_in_4bit": True}, False),
    ],
)
def test_only_the_model_that_is_loaded_to_be_trained_is_scored_in_the_policy(
    model: dict[str, Any], found: bool
) -> None:
    assert recipe("model", **model).model.reference_in_policy is found


class Ranks:
    """Three of them, of which the first computes everything."""

    size = 3

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def call(self, phase: str, method: Any, name: str, start: int, stop: int) -> list[Scores]:
        self.asked.append((start, stop))
        return [{i: [float(start + i)] for i in range(stop - start)}, {}, {}]


def test_slices_are_of_the_ranks_that_there_are() -> None:
    """Whatever number of them the recipe has."""
    ranks: Any = Ranks()
    found = list(_scored(ranks, ReferenceCalls.score_split, "train", 1000))
    assert found == [[float(i)] for i in range(1000)]
    assert ranks.asked == [(0, 3 * CACHE_SLICE), (3 * CACHE_SLICE, 6 * CACHE_SLICE), (6 * CACHE_SLICE, 1000)]
