"""When checkpoints are due, and what is said of their speed."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from dpeer.config import Config
from dpeer.errors import CheckpointError, ConfigError
from dpeer.training import checkpoint, saves
from dpeer.training.grace import VARIABLE, grace_s, shortage
from dpeer.training.run_dir import RunDir
from dpeer.training.saves import Ahead, Saves
from dpeer.training.snapshot import Beside, _copied


def recipe(folder: Path = Path("runs"), grace: float | None = None, **training: Any) -> Config:
    return Config.model_validate(
        {
            "name": "x",
            "output_dir": folder,
            "model": {"path": "m"},
            "data": {"train": "d"},
            "training": {"steps": 100, **training},
            "cluster": {"grace_s": grace},
        }
    )


def test_due_by_steps_by_time_and_at_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = 0.0
    monkeypatch.setattr(saves.time, "monotonic", lambda: now)
    workers: Any = None

    def ordered(**training: Any) -> Saves:
        return Saves(recipe(**training), RunDir(tmp_path), workers, lambda: None)

    by_steps = ordered(checkpoint_every=7)
    assert [s for s in range(1, 24) if by_steps.due(s, 23)] == [7, 14, 21, 23]
    both, by_time = (
        ordered(checkpoint_every=7, checkpoint_minutes=2),
        ordered(checkpoint_every=None, checkpoint_minutes=2),
    )
    now = 119.9
    assert [s for s in range(1, 24) if both.due(s, 23)] == [7, 14, 21, 23] and not by_time.due(7, 23)
    now = 120.0
    assert both.due(1, 23) and by_time.due(1, 23)
    by_time.ahead = Ahead(1, None, 0.0)  # time asks for no second one while one is in flight
    assert not by_time.due(2, 23) and by_time.due(23, 23)


def test_nothing_or_a_schedule_by_time_cannot_be_judged() -> None:
    with pytest.raises(ValidationError, match="nothing would be saved before the end"):
        recipe(checkpoint_every=None)
    with pytest.raises(ValidationError, match="judge the checkpoints of a schedule by steps"):
        recipe(checkpoint_every=None, checkpoint_minutes=5, keep="best")


def test_a_save_must_fit_the_grace_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 600 s: a step of 40, and one save of 560, or two of 280 where one may be in flight."""
    monkeypatch.delenv(VARIABLE, raising=False)
    assert shortage(recipe(), 10**12, 9999.0) == ""
    for asynchronous, most in ((False, 560.0), (True, 280.0)):
        config = recipe(grace=600, checkpoint_async=asynchronous)
        assert shortage(config, 847 * 10**9, most, 40.0) == ""
        said = shortage(config, 847 * 10**9, most + 10, 40.0)
        assert "847.0 GB" in said and "leaves 600 s" in said and "GB/s" in said
    monkeypatch.setenv(VARIABLE, "120")
    assert grace_s(recipe()) == 120 and grace_s(recipe(grace=600)) == 600
    for wrong in ("2m", "0", "inf"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(ConfigError, match=f"{VARIABLE}={wrong}"):
            grace_s(recipe())


@pytest.mark.parametrize(
    ("training", "steps", "on_its_way", "lost"),
    [
        ({"checkpoint_every": 4}, 4, False, False),
        ({"checkpoint_every": 4}, 5, False, True),
        ({"checkpoint_every": 4}, 8, True, False),  # killed while the first was being written
        ({"checkpoint_every": 4}, 9, True, True),
        ({"checkpoint_every": None, "checkpoint_minutes": 1}, 7, False, False),
        ({"checkpoint_every": None, "checkpoint_minutes": 1}, 8, False, True),  # after 70 s
        ({"checkpoint_every": None, "checkpoint_minutes": 1}, 8, True, False),
    ],
)
def test_a_ledger_too_long_for_a_run_without_checkpoints_is_not_wiped(
    tmp_path: Path, training: dict[str, Any], steps: int, on_its_way: bool, lost: bool
) -> None:
    run = RunDir(tmp_path)
    run.begin(recipe(**training), {})
    for step in range(1, steps + 1):
        run.append({"step": step}, {"step": step, "seconds": 10.0})
    if on_its_way:
        run.temporary_checkpoint(4).mkdir(parents=True)
    if lost:
        with pytest.raises(CheckpointError, match="no checkpoint is there, but the ledger has"):
            run.refuse_lost_checkpoints()
    else:
        run.refuse_lost_checkpoints()


def test_what_is_written_beside_ends_also_where_priorities_may_not_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refused)
    assert Beside(lambda: 7)._done.result(10) == 7


@pytest.mark.parametrize(("free", "room"), [(24, True), (23, False)])
def test_copies_of_all_ranks_of_a_host_take_half_of_what_its_job_has_left(
    monkeypatch: pytest.MonkeyPatch, free: int, room: bool
) -> None:
    """Three ranks of which two are here, with 5 and 7 bytes to copy."""
    monkeypatch.setattr(checkpoint, "free_memory", lambda: float(free))
    here = platform.node()
    monkeypatch.setattr(checkpoint.shards, "gathered", lambda own, world: [own, (here, 7), ("elsewhere", 99)])
    policy: Any = SimpleNamespace(world=None)
    assert checkpoint._room_for(5, policy) is room


def test_a_copy_has_the_classes_of_the_original() -> None:
    """DeepSpeed's own tools ask shapes for `numel`."""
    tree = {"shape": torch.Size([2, 3]), "pair": (1, torch.ones(2))}
    found = _copied(tree, {})
    assert type(found["shape"]) is torch.Size and type(found["pair"]) is tuple
    assert torch.equal(found["pair"][1], torch.ones(2))
