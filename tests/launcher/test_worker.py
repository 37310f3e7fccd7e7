"""A process that serves one recipe after another frees a model before it builds the next."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from dpeer.config import Config, Constraint
from dpeer.errors import ConfigError
from dpeer.launcher import torchrun, worker
from dpeer.launcher.faq import section
from dpeer.objective.constraints import build_constraints
from dpeer.training import rank
from dpeer.training.world import World


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []

    def fake(role: str) -> type[Any]:
        class Rank:
            def __init__(self, config: Config, world: World, prepared: Any = None) -> None:
                self.summary: dict[str, Any] = {}
                told.append(f"build {role}")

            def close(self) -> None:
                told.append(f"close {role}")

        return Rank

    for role, name in (("policy", "TrainingRank"), ("reference", "ReferenceRank")):
        monkeypatch.setattr(rank, name, fake(role))
        monkeypatch.setitem(torchrun.ROLES, role, getattr(rank, name))
    return told


TREE = {"name": "x", "model": {"path": "m"}, "data": {"train": "d"}, "training": {"steps": 1}}
EXPECTED = ["build reference", "close reference", "build policy", "close policy", "build policy"]


def test_ray_worker_closes_one_build_before_the_next(events: list[str]) -> None:
    served = worker.Worker.__ray_metadata__.modified_class()
    for role in ("reference", "policy", "policy"):
        served.build(role, TREE)
    assert events == EXPECTED


def test_torchrun_rank_closes_one_build_before_the_next(events: list[str]) -> None:
    served = torchrun.Rank.__new__(torchrun.Rank)
    served.rank, served.here = None, None  # type: ignore[assignment]
    config = Config.model_validate(TREE)
    for role in ("reference", "policy", "policy"):
        served.execute(torchrun.BUILD, (role, config), {})
    assert events == EXPECTED


def test_an_error_of_a_rank_points_to_its_own_section() -> None:
    with pytest.raises(ConfigError, match="no value for H") as caught, worker._refusals():
        build_constraints(Constraint(tolerance={"A": 0.3}), ("A", "H"))
    assert section(pickle.loads(pickle.dumps(caught.value))) == "objective"
