"""Two files run side by side (`pytest -n 2`): most tests wait for processes that import torch, each on one core."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
DEFAULT_LIMIT_S = 300.0  # `timeout` in pyproject.toml


def lane(path: Path) -> str:
    """What must stay together for its fixtures: a file; for the harness, whose Slurm is shared, the folder."""
    return str(path.parent if path.parent == HERE / "harness" else path)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lanes in the order of the time that their slow tests may take, so that no long one begins last."""
    allowed: dict[str, float] = {}
    for item in items:
        name = lane(item.path)
        item.add_marker(pytest.mark.xdist_group(name))
        limit = item.get_closest_marker("timeout")
        slow = item.get_closest_marker("slow") is not None
        allowed[name] = allowed.get(name, 0.0) + slow * (limit.args[0] if limit else DEFAULT_LIMIT_S)
    items.sort(key=lambda item: -allowed[lane(item.path)])
