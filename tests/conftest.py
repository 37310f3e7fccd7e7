"""Two files run side by side (`pytest -n 2`): most tests wait for processes that import torch, each on one core."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("dpeer", deadline=None)  # how long an example takes says nothing on a busy machine
settings.load_profile("dpeer")
DEFAULT_LIMIT_S = 300.0  # `timeout` in pyproject.toml
HARNESS = "tests/harness/"
TOGETHER = {"tests/launcher/test_torchrun.py": "tests/launcher/test_train_ray.py"}


def lane(nodeid: str) -> str:
    """What must stay together for its fixtures: a file; of the harness, whose Slurm is shared, all; two that share
    trained runs."""
    file = nodeid.partition("::")[0]
    return HARNESS if file.startswith(HARNESS) else TOGETHER.get(file, file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lanes in the order of the time that their slow tests may take, so that no long one begins last."""
    allowed: dict[str, float] = {}
    for item in items:
        limit = item.get_closest_marker("timeout")
        slow = item.get_closest_marker("slow") is not None
        name = lane(item.nodeid)
        allowed[name] = allowed.get(name, 0.0) + slow * (limit.args[0] if limit else DEFAULT_LIMIT_S)
    items.sort(key=lambda item: -allowed[lane(item.nodeid)])


def pytest_collection_finish() -> None:
    """What the imports have left stays for good: garbage is looked for in what tests make."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Lanes(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return lane(nodeid)

    return Lanes(config, log)
