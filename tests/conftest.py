"""Three files run side by side (`pytest -n 3`): most slow tests wait for processes of their own."""

from __future__ import annotations

import gc
import os
from typing import Any

import pytest
from hypothesis import settings

from dpeer.cache import cache_root

os.environ.setdefault("DPEER_CACHE", str(cache_root()))  # also of tests and processes that work in another folder
settings.register_profile("dpeer", deadline=None)  # how long an example takes says nothing on a busy machine
settings.load_profile("dpeer")
SLOW_LIMIT_S = 900  # of a slow test that names none: it may be the first to build CmdStan and to compile the model
USUAL_S = 300.0  # what such a test weighs in the order below
HARNESS = "tests/harness/"
TOGETHER = {"tests/launcher/test_torchrun.py": "tests/launcher/test_train_ray.py"}
LONGEST = ("tests/launcher/test_train_ray.py", HARNESS, "tests/launcher/test_chaos.py", "tests/eval/test_farm.py")
"""Lanes that begin first: eighteen, seventeen, five and three minutes on two cores."""


def lane(nodeid: str) -> str:
    """What must stay together for its fixtures: a file; of the harness, whose Slurm is shared, all; two that share
    trained runs."""
    file = nodeid.partition("::")[0]
    return HARNESS if file.startswith(HARNESS) else TOGETHER.get(file, file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest lanes, then the others in the order of the time that their slow tests may take: no long one begins
    last."""
    allowed: dict[str, float] = {}
    for item in items:
        name = lane(item.nodeid)
        allowed.setdefault(name, 0.0)
        if item.get_closest_marker("slow"):
            limit = item.get_closest_marker("timeout")
            allowed[name] += limit.args[0] if limit else USUAL_S
            if not limit:
                item.add_marker(pytest.mark.timeout(SLOW_LIMIT_S))

    def place(item: pytest.Item) -> tuple[int, float]:
        name = lane(item.nodeid)
        return (LONGEST.index(name) if name in LONGEST else len(LONGEST)), -allowed[name]

    items.sort(key=place)


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
