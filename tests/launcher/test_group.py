"""What the launcher refuses before or without starting workers."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.exceptions import OutOfMemoryError

from dpeer.config import Cluster
from dpeer.errors import CheckpointError, ClusterError
from dpeer.launcher.cluster import unplaceable
from dpeer.launcher.group import Group
from dpeer.launcher.train import check_startable
from dpeer.training.calls import WorkerLost
from dpeer.training.run import refuse_other_facts
from dpeer.training.run_dir import RunDir


def test_worker_with_other_data_is_named() -> None:
    facts = {"data": {"sha256": "a"}, "reference": {"hash": "b"}}
    refuse_other_facts("rank 1", dict(facts), facts)
    with pytest.raises(ClusterError, match=r"rank 1 holds another reference .*'c'.*instead of .*'b'"):
        refuse_other_facts("rank 1", facts | {"reference": {"hash": "c"}}, facts)


def test_resume_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        check_startable(RunDir(tmp_path / "mistyped"), resume=True)
    check_startable(RunDir(tmp_path / "new"), resume=False)


@pytest.mark.parametrize(
    ("wanted", "nodes", "missing"),
    [
        (3, [{"CPU": 2.0}], 1),
        (2, [{"CPU": 1.5}, {"CPU": 1.0}], 0),
        (2, [{"CPU": 1.5}, {"CPU": 0.5}], 1),
        (1, [], 1),
    ],
)
def test_bundles_must_fit_single_nodes(wanted: int, nodes: list[dict[str, float]], missing: int) -> None:
    assert unplaceable([{"CPU": 1.0}] * wanted, nodes) == missing


def test_a_worker_that_rays_memory_monitor_ended_is_lost_not_at_fault() -> None:
    group = object.__new__(Group)
    group.role, group.spec, group.workers = "policy", Cluster(), [object()]
    group.hosts = [{"host": "n1", "pid": 7}]
    lost = group._failure({0: OutOfMemoryError("too much")}, [], "exporting", 10.0)
    assert isinstance(lost, WorkerLost)
    assert str(lost).startswith("policy worker rank 0 (host n1, pid 7) died during 'exporting'.")
    assert "ran out of memory" in str(lost)
