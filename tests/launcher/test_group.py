"""What the launcher refuses before or without starting workers."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError

from dpeer.config import Cluster, Config
from dpeer.errors import CheckpointError, ClusterError, DataError
from dpeer.launcher import exit_codes
from dpeer.launcher.cluster import NodeLost, unplaceable
from dpeer.launcher.driver import check_startable, refuse_lost_gpus
from dpeer.launcher.gpus import resolved_gpus
from dpeer.launcher.group import GRACE_S, Group
from dpeer.launcher.last_words import tail
from dpeer.launcher.train import train
from dpeer.launcher.watchdog import State
from dpeer.training.agreement import refuse_other_facts, refuse_other_means
from dpeer.training.calls import DeviceLost, WorkerFailed, WorkerLost
from dpeer.training.pulse import Pulse
from dpeer.training.run_dir import RunDir


def test_worker_with_other_data_is_named() -> None:
    facts = {"data": {"sha256": "a"}, "reference": {"hash": "b"}}
    refuse_other_facts("rank 1", dict(facts), facts)
    with pytest.raises(ClusterError, match=r"rank 1 holds another reference .*'c'.*instead of .*'b'"):
        refuse_other_facts("rank 1", facts | {"reference": {"hash": "c"}}, facts)


def test_ranks_must_compute_by_the_same_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    def rank(host: str, **changes: Any) -> dict[str, Any]:
        means = {"attention": "FlashAttention 3", "kernels": "Liger 1", "numerics": ["H100", "2.13"]}
        return {"host": host, "means": means | changes}

    refuse_other_means({"rank 0": rank("a"), "rank 1": rank("b", attention="FlashAttention 3; 4 is not used: x")})
    assert capsys.readouterr().out == ""
    ranks = {f"rank {i}": rank(f"h{i // 2}", numerics=["H100" if i < 2 else "H200", "2.13"]) for i in range(8)}
    refuse_other_means(ranks)
    out = capsys.readouterr().out
    assert "H100, 2.13 on rank 0 (h0), rank 1 (h0); H200, 2.13 on rank 2 (h1)" in out and "and 2 more" in out
    ranks["rank 5"] = rank("odd", attention="FlashAttention 2 of torch")
    with pytest.raises(
        ClusterError, match=r"attention by different.*FlashAttention 2 of torch on rank 5 \(odd\).*flash"
    ):
        refuse_other_means(ranks)
    with pytest.raises(ClusterError, match=r"layers by different.*transformers on rank 1 \(b\).*model.kernels=eager"):
        refuse_other_means({"rank 0": rank("a"), "rank 1": rank("b", kernels="transformers; Liger is not used: y")})


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


def lone_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ranks: int = 2) -> Group:
    """A group whose workers answer nothing, with what each has written on stderr."""
    group = object.__new__(Group)
    group.role, group.size, group.spec, group.workers = "policy", ranks, Cluster(), [object()] * ranks
    group.hosts = []
    for rank in range(ranks):
        (tmp_path / f"{rank}.err").write_text(f":job_id:1\n{'noise' * 20}\nlast words of {rank}\n")
        place = {"host": f"n{rank}", "pid": 7 + rank, "node": f"id{rank}", "stderr": str(tmp_path / f"{rank}.err")}
        group.hosts.append(place)
    monkeypatch.setattr(group, "_states", lambda: [State(f"rank {r}", "step", "there") for r in range(ranks)])
    monkeypatch.setattr("dpeer.launcher.group.last_lines", lambda places: [tail(path) for _, path in places])
    return group


def raised(error: Exception) -> RayTaskError:
    """As it arrives at the driver."""
    return RayTaskError("call", "in call\n  line 3 of the worker\nboom", error).as_instanceof_cause()


def test_a_worker_that_rays_memory_monitor_ended_is_lost_not_at_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lost = lone_group(monkeypatch, tmp_path)._failure({0: OutOfMemoryError("too much")}, [], "exporting", 10.0)
    assert isinstance(lost, WorkerLost)
    assert str(lost).startswith("policy worker rank 0 (host n0, pid 7) died during 'exporting'.")
    assert "ran out of memory" in str(lost)


LINK = dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp: remote process exited or there was a network error")
ECC = RuntimeError("CUDA error: uncorrectable ECC error encountered")
DATA = DataError("train.jsonl, row 3: no golden response")


@pytest.mark.parametrize(
    ("failures", "silent", "kind", "says"),
    [
        ({0: LINK, 1: LINK}, [], WorkerLost, "rank 0 (host n0, pid 7) failed during 'step': DistBackendError"),
        ({0: LINK}, [1], WorkerLost, "rank 1 (host n1, pid 8) did not answer during 'step'"),
        ({0: LINK, 1: ECC}, [], DeviceLost, "uncorrectable ECC error encountered. A GPU of host n1 has failed."),
        ({1: ECC}, [0], DeviceLost, "A GPU of host n1"),
        (
            {0: LINK, 1: ValueError("a bug")},
            [],
            WorkerFailed,
            "rank 1 (host n1, pid 8) failed during 'step': ValueError",
        ),
        ({0: ECC, 1: torch.OutOfMemoryError("CUDA out of memory.")}, [], WorkerFailed, "CUDA out of memory"),
        ({0: LINK, 1: DATA}, [], DataError, "row 3"),
        ({0: ECC, 1: DATA}, [], DataError, "row 3"),
    ],
)
def test_what_failed_decides_whether_a_restart_may_help(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    failures: dict[int, Exception],
    silent: list[int],
    kind: type[Exception],
    says: str,
) -> None:
    """Only collectives: again. A GPU: again, without its node. A fault of a rank's own, or of the data: the end."""
    group = lone_group(monkeypatch, tmp_path)
    found = group._failure({rank: raised(error) for rank, error in failures.items()}, silent, "step", 10.0)
    assert type(found) is kind or (kind is DataError and isinstance(found, DataError)), found
    assert says in str(found)
    if isinstance(found, WorkerLost):
        assert "line 3 of the worker" in found.details and "last words of" in found.details


def test_a_dead_workers_last_words_are_kept_and_may_blame_its_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    group = lone_group(monkeypatch, tmp_path)
    lost = group._failure({1: ActorDiedError(), 0: raised(LINK)}, [], "step", 10.0)
    assert type(lost) is WorkerLost and "rank 1 (host n1, pid 8) died during 'step'." in str(lost)
    assert lost.details.endswith("last words of 1") and ":job_id:" not in lost.details
    with (tmp_path / "1.err").open("a") as stream:
        stream.write("\n".join(["filler"] * 150 + ["watchdog: CUDA error: uncorrectable ECC error encountered"]))
    lost = group._failure({1: ActorDiedError()}, [], "step", 10.0)
    assert isinstance(lost, DeviceLost) and (lost.host, lost.node) == ("n1", "id1")
    (tmp_path / "1.err").unlink()
    silent = group._failure({1: ActorDiedError()}, [], "step", 10.0)
    assert type(silent) is WorkerLost and silent.details == ""


def test_the_rank_with_the_fault_is_blamed_and_not_the_one_that_died_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    group = lone_group(monkeypatch, tmp_path)
    broken = raised(RuntimeError("CUDA error: uncorrectable ECC error encountered"))
    lost = group._failure({0: broken, 1: ActorDiedError()}, [], "step", 10.0)
    assert isinstance(lost, DeviceLost) and lost.node == "id0" and "line 3 of the worker" in lost.details
    with (tmp_path / "0.err").open("a") as stream:
        stream.write("watchdog: CUDA error: uncorrectable ECC error encountered\n")
    lost = group._failure({1: ActorDiedError(), 0: ActorDiedError()}, [], "step", 10.0)
    assert isinstance(lost, DeviceLost) and lost.node == "id0"
    (tmp_path / "0.err").unlink()
    bug = group._failure({0: raised(ValueError("a bug")), 1: ActorDiedError()}, [], "step", 10.0)
    assert type(bug) is WorkerLost and "line 3 of the worker" in bug.details


@pytest.mark.parametrize(
    ("beats_until", "fails_at", "ends", "says"),
    [
        ((7000, 9000), None, 9000, ""),
        ((100, 9000), None, 100 + 1800 + GRACE_S, "rank 0 (host n0, pid 7) did not answer during 'scoring' within"),
        ((100, 100), None, 100 + 600, "made no progress for 600 s during 'scoring'"),
        ((9000, 9000), 3000, 3000 + GRACE_S, "rank 1 (host n1, pid 8) did not answer during 'scoring'"),
    ],
    ids=["long", "one-stands-still", "all-stand-still", "one-fails"],
)
def test_a_call_may_take_long_while_its_ranks_go_on(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    beats_until: tuple[float, float],
    fails_at: float | None,
    ends: float,
    says: str,
) -> None:
    """Two ranks of which the clock alone is not real: they beat up to a second, and then return if that was the last
    of their work."""
    group, clock = lone_group(monkeypatch, tmp_path), [0.0]
    returns = [until if until >= 7000 else math.inf for until in beats_until]
    if fails_at:
        returns[0] = fails_at

    def wait(pending: list[int], count: int, timeout: float) -> tuple[list[int], list[int]]:
        clock[0] = min(clock[0] + timeout, max(clock[0], min(returns[rank] for rank in pending)))
        done = [rank for rank in pending if returns[rank] <= clock[0]]
        return done, [rank for rank in pending if rank not in done]

    def get(rank: int) -> str:
        if fails_at and rank == 0:
            raise raised(LINK)
        return f"scores of {rank}"

    def pulses(ranks: list[int]) -> dict[int, Pulse]:
        return {r: Pulse("scoring", 0, int(min(clock[0], beats_until[r])), beating=True) for r in ranks}

    monkeypatch.setattr("dpeer.launcher.group.wait", wait)
    monkeypatch.setattr("dpeer.launcher.group.ray.get", get)
    monkeypatch.setattr("dpeer.launcher.group.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(group, "_pulses", pulses)
    if says:
        with pytest.raises(WorkerLost, match=re.escape(says)):
            group.wait("scoring", [0, 1])
    else:
        assert group.wait("scoring", [0, 1]) == ["scores of 0", "scores of 1"]
    assert ends <= clock[0] <= ends + 15


def test_a_run_that_began_on_gpus_does_not_go_on_on_the_cpu_unawares(tmp_path: Path) -> None:
    tree: dict[str, Any] = {"name": "x", "output_dir": tmp_path, "model": {"path": "m"}, "data": {"train": "d"}}
    given = Config.model_validate(tree | {"training": {"steps": 1}})
    files = RunDir(given.run_dir)
    files.begin(resolved_gpus(given, 1), {})
    refuse_lost_gpus(given, resolved_gpus(given, 1), files)
    with pytest.raises(ClusterError, match=r"began on GPUs, and none is seen now.*gpus_per_worker=0"):
        refuse_lost_gpus(given, resolved_gpus(given, 0), files)
    wanted = Config.model_validate(tree | {"training": {"steps": 1}, "cluster": {"gpus_per_worker": 0}})
    refuse_lost_gpus(wanted, wanted, files)


def test_a_broken_gpus_node_is_left_where_there_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next groups are told to keep away; where nothing else is left, the code is that of a lost node."""
    lives, left = iter([DeviceLost("boom.", "details", "n1", "id1"), NodeLost("no room.")]), []
    groups: Any = SimpleNamespace(left=set(), close=lambda: None)

    def run(self: Any) -> None:
        left.append(set(groups.left))
        raise next(lives)

    monkeypatch.setattr("dpeer.launcher.train.TrainingRun.run", run)
    monkeypatch.setattr("dpeer.launcher.train.tokenise", lambda *_: None)
    config = Config.model_validate(
        {
            "name": "x",
            "output_dir": tmp_path,
            "model": {"path": "m"},
            "data": {"train": "d"},
            "training": {"steps": 1},
            "cluster": {"address": "head:6379", "gpus_per_worker": 0},
        }
    )
    assert train(config, groups) == exit_codes.NODE_LOST
    assert left == [set(), {"id1"}]
    lives = iter([DeviceLost("boom.", "details", "n2", "id2")])
    last = config.model_copy(update={"cluster": config.cluster.model_copy(update={"max_restarts": 0})})
    assert train(last, groups) == exit_codes.NODE_LOST
    told = (config.run_dir / "error.txt").read_text()
    assert told.count("boom.") == 2 and told.count("details") == 2
    lives = iter([DeviceLost("boom.", "", "n2", "id2")])
    private = last.model_copy(update={"cluster": last.cluster.model_copy(update={"address": None})})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ClusterError, match="Gave up after 0 restarts"):
        train(private, groups)
