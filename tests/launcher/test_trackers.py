"""Trackers: what a full disk does to them is told once, by the driver."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from dpeer.config_io import load_config
from dpeer.launcher.trackers import Trackers
from dpeer.training.run_dir import RunDir

RECIPES = Path(__file__).parents[2] / "launcher" / "recipes"


def test_full_disk_is_an_error_of_the_driver_without_a_traceback_of_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", told.append)

    def log_until_told() -> None:
        with Trackers(load_config(RECIPES / "demo.yaml"), RunDir(tmp_path), 0) as trackers:
            (events,) = (tmp_path / "tensorboard").glob("events.*")
            trackers.writer.flush()
            events.unlink()
            events.symlink_to("/dev/full")
            for step in range(1, 1000):
                trackers.log({"step": step, "loss": 1.0}, {"step": step})
                trackers.writer.flush()

    with pytest.raises(OSError, match="No space left on device"):
        log_until_told()
    assert told == []
