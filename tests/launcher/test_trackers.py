"""Trackers only report: none of them ends a run, whatever it raises and wherever. Stand-ins for what is not here."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dpeer.config import Config
from dpeer.config_io import load_config
from dpeer.errors import ConfigError
from dpeer.launcher.trackers import Trackers, check_trackers
from dpeer.training.run_dir import RunDir

RECIPES = Path(__file__).parents[2] / "launcher" / "recipes"
ENTRIES = [{"step": i, "dimensions": {"tone[/formal]": {"loss": i / 2}}} for i in (1, 2, 3)]
NAME = "dimensions/tone[/formal]/loss"


class Stub:
    """wandb, trackio and mlflow in one, as far as dpeer calls them; raises in the call `fails`."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.logged = fails, list[tuple[int, dict[str, float]]]()
        self.started: dict[str, Any] = {}

    def _call(self, name: str) -> None:
        if name == self.fails:
            raise RuntimeError("connection\nlost")

    def init(self, **settings: Any) -> Stub:
        self._call("start")
        self.started = settings
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self._call("log")
        self.logged.append((step, values))

    def finish(self) -> None:
        self._call("close")

    def set_experiment(self, name: str) -> None:
        self.started["project"] = name

    def search_runs(self, **query: Any) -> list[Any]:
        return [SimpleNamespace(info=SimpleNamespace(run_id="r1"))]

    def start_run(self, **settings: Any) -> None:
        self._call("start")
        self.started |= settings

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.log(values, step)

    def end_run(self) -> None:
        self.finish()


def recipe(*changes: str) -> Config:
    return load_config(RECIPES / "demo.yaml", changes)


def logged(tmp_path: Path, name: str, stub: Stub, monkeypatch: pytest.MonkeyPatch, start: int = 0) -> list[str]:
    """What is said while three steps are logged."""
    monkeypatch.setitem(sys.modules, name, stub)  # type: ignore[arg-type]
    said: list[str] = []
    config = recipe(f"training.trackers=[{name}]", "training.wandb_project=null")
    with Trackers(config, RunDir(tmp_path), start, said.append) as trackers:
        for entry in ENTRIES:
            trackers.log(entry, {"step": entry["step"], "seconds": 1.0})
    return said


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
@pytest.mark.parametrize("fails", ["start", "log", "close"])
def test_a_tracker_that_fails_is_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fails: str
) -> None:
    (line,) = logged(tmp_path, name, Stub(fails), monkeypatch)
    assert line == f"{name} reports no longer (RuntimeError: connection); training goes on without it"


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_every_step_reaches_the_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    stub = Stub()
    assert logged(tmp_path, name, stub, monkeypatch, start=5) == []
    assert [step for step, _ in stub.logged] == [1, 2, 3]
    shown = "dimensions/tone__/formal_/loss".replace("__/", "_/") if name == "mlflow" else NAME
    assert [values[shown] for _, values in stub.logged] == [0.5, 1.0, 1.5]
    assert all(values["timing/seconds"] == 1.0 for _, values in stub.logged)
    assert stub.started["project"] == "dpeer"
    assert stub.started["run_id" if name == "mlflow" else "resume"] == ("r1" if name == "mlflow" else "allow")


def test_a_full_disk_is_told_once_without_a_traceback_of_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[threading.ExceptHookArgs] = []
    said: list[str] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    with Trackers(recipe(), RunDir(tmp_path), 0, said.append) as trackers:
        writer: Any = trackers.open["tensorboard"]
        (events,) = (tmp_path / "tensorboard").glob("events.*")
        writer.writer.flush()
        events.unlink()
        events.symlink_to("/dev/full")
        for step in range(1, 1000):
            trackers.log({"step": step, "loss": 1.0}, {"step": step})
            if not trackers.open:
                break
            with pytest.MonkeyPatch.context():
                try:
                    writer.writer.flush()
                except OSError:
                    continue
    assert len(said) == 1 and "tensorboard reports no longer" in said[0] and "No space left" in said[0]
    assert told == []


def test_trackers_that_cannot_work_are_refused_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpeer.launcher.trackers.find_spec", lambda name: None if name == "mlflow" else object())
    with pytest.raises(ConfigError, match=r"mlflow is not installed.*pip install mlflow"):
        check_trackers(recipe("training.trackers=[tensorboard, mlflow]"))
    nobody = ModuleType("wandb")
    nobody.api = SimpleNamespace(api_key=None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", nobody)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(ConfigError, match=r"wandb login.*WANDB_MODE=offline"):
        check_trackers(recipe("training.wandb_project=p"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers(recipe("training.wandb_project=p"))
    monkeypatch.delenv("WANDB_MODE")
    nobody.api = SimpleNamespace(api_key="k")  # type: ignore[attr-defined]
    check_trackers(recipe("training.wandb_project=p"))
    check_trackers(recipe())
