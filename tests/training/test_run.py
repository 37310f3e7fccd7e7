"""The order of a run, with ranks of one number: killed at any of its calls and resumed, it ends the same."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from dpeer.config import Config
from dpeer.errors import Interrupted
from dpeer.integrity import folder_faults
from dpeer.training import run_dir
from dpeer.training.calls import Exported, SaveCost
from dpeer.training.cost import PHASES, StepCost
from dpeer.training.publish import BYTES, unfinished
from dpeer.training.run import TrainingRun
from dpeer.training.run_dir import RunDir

TOTAL, EVERY = 9, 2
SLOW = 1
"""Steps during which a checkpoint is being written."""
LOSSES = {1: 0.9, 2: 0.7, 3: 0.4, 4: 0.5, 5: 0.6, 6: 0.7, 7: 0.8, 8: 0.8, 9: 0.9}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest asks git and every package; here no power failure threatens."""
    monkeypatch.setattr(run_dir, "git_revision", lambda: None)
    monkeypatch.setattr(run_dir, "package_version", lambda _: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)


class Killed(BaseException):
    """The driver's sudden end."""


COST: StepCost = {
    "seconds": dict.fromkeys(PHASES, 0.1), "flops": 6e12, "model_flops": 4e12, "ceiling": None, "largest_pack": 9,
    "prompt_tokens": 3, "response_tokens": 2, "responses": 3, "memory_allocated": None, "memory_reserved": None,
    "writing": False,
}  # fmt: skip


class Rank:
    """A model whose weight is the number of its steps."""

    def __init__(self) -> None:
        self.step = 0
        self.saving: tuple[Path, int] | None = None
        self.writing: list[int] = []

    def train_step(self, references: Any = None) -> dict[str, Any]:
        self.step += 1
        means = {"edges": 4, "loss": LOSSES[self.step]}
        constraint = {"dimensions": ["A"], "tolerance": 0.5, "slack": None, "relaxed": False, "multiplier": 0.0}
        return {
            "step": self.step,
            "tokens": 1,
            "packs": 1,
            "dimensions": {"A": {**means, "dual": means}},
            "constraints": {"A": constraint},
        }

    def timed_step(self, references: Any = None) -> tuple[dict[str, Any], StepCost]:
        self.writing, writing = self.writing[1:], bool(self.writing)
        return self.train_step(references), COST | {"writing": writing}

    def save(self, folder: Path) -> SaveCost:
        assert list(folder.iterdir()) == []
        (folder / "state.json").write_text(str(self.step))
        return {"bytes": 9, "seconds": 0.1, "background": False}

    def begin_save(self, folder: Path) -> None:
        assert self.saving is None
        self.saving, self.writing = (folder, self.step), [self.step] * SLOW
        (folder / "part").touch()

    def finish_save(self) -> SaveCost:
        assert self.saving
        (folder, step), self.saving, self.writing = self.saving, None, []
        (folder / "state.json").write_text(str(step))
        return {"bytes": 9, "seconds": 0.1, "background": True}

    def commit(self, temporary: Path, final: Path) -> None:
        temporary.rename(final)

    def load(self, folder: Path) -> int:
        self.step = int((folder / "state.json").read_text())
        return self.step

    def score_dual(self) -> dict[int, list[float]]:
        return {0: [float(self.step)]}

    score_heldout = score_heldout_reference = score_dual_reference = score_dual

    def proven(self, policy: list[list[float]], reference: list[list[float]], look: int) -> bool:
        assert policy == [[float(self.step)]] and self.step == look * EVERY
        return LOSSES[self.step] <= 0.5

    def sample(self) -> list[dict[str, str]]:
        return [{"prompt": "p", "reply": f"after {self.step}"}]

    def certificate(self, policy: list[list[float]], reference: list[list[float]], *more: Any) -> dict[str, int]:
        return {"step": self.step}

    def export(self, folder: Path) -> Exported:
        folder.mkdir(exist_ok=True)
        (folder / "step").write_text(str(self.step))
        return {"notes": [], "files": None}


class Group:
    """The one rank; the driver dies at call number `end`, before or after the rank has done its work."""

    def __init__(self, end: int | None, after: bool) -> None:
        self.rank, self.end, self.after, self.calls = Rank(), end, after, 0

    def call_first(self, phase: Any, method: Callable[..., Any], *arguments: Any) -> Any:
        self.calls += 1
        if self.calls == self.end and not self.after:
            raise Killed
        result = getattr(self.rank, method.__name__)(*arguments)
        if self.calls == self.end:
            raise Killed
        return result

    def call(self, phase: Any, method: Callable[..., Any], *arguments: Any) -> list[Any]:
        return [self.call_first(phase, method, *arguments)]

    def start(self, method: Any, *arguments: Any) -> Any:
        return [self.call_first("", method, *arguments)] if callable(method) else [self]

    def wait(self, phase: str, pending: list[Any]) -> list[Any]:
        return pending

    def start_build(self, config: Config) -> None: ...

    def finish_build(self, pending: None) -> dict[str, Any]:
        return {
            "steps": TOTAL,
            "facts": {},
            "means": {"engine": "plain", "attention": "SDPA", "kernels": "own", "sequence_parallel": 1},
            "why": "one rank",
            "warnings": (),
        }

    def policy(self) -> Group:
        return self


class Stops:
    received: int | None = None
    exit_code = 0

    def deferred(self) -> nullcontext[None]:
        return nullcontext()


class Watcher:
    def step(self, entry: dict[str, Any], timing: dict[str, Any]) -> None: ...
    def warn(self, message: str) -> None: ...


@contextmanager
def watch(total: int, start: int) -> Iterator[Watcher]:
    yield Watcher()


def begun(folder: Path, training: dict[str, Any], group: Any, stops: Stops | None = None) -> TrainingRun:
    config = Config.model_validate(
        {
            "name": "x",
            "output_dir": folder,
            "model": {"path": "m"},
            "data": {"train": "d"},
            "training": {"steps": TOTAL, "checkpoint_every": EVERY, "keep_checkpoints": 1, **training},
            "cluster": {"reference": "colocated"},
        }
    )
    return TrainingRun(config, group, RunDir(config.run_dir), stops or Stops(), watch)


def train(folder: Path, training: dict[str, Any], end: int | None = None, after: bool = False) -> int:
    """One life of the driver; returns the number of its calls."""
    group = Group(end, after)
    begun(folder, training, group).run()
    return group.calls


def remains(folder: Path) -> dict[str, str]:
    """What a run leaves, but for times."""
    run = folder / "x"
    names = ("ledger.jsonl", "samples.jsonl", "stop.json", "certificate.json", "export/step")
    found = {name: (run / name).read_text() for name in names if (run / name).exists()}
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["finished"]
    saved = sorted(p.name for p in run.glob("checkpoints/*"))
    return found | {"exported": str(manifest["exported_step"]), "checkpoints": " ".join(saved)}


ENDS: list[tuple[dict[str, Any], int, int, str | None]] = [
    ({"keep": "best"}, 9, 4, None),  # mean loss 0.45 over steps 3 and 4
    ({"keep": "best", "patience": 2}, 8, 4, "patience"),
    ({"keep": "best", "stop_when": "certified", "patience": 1, "sample_every": 3}, 4, 4, "certified"),
    ({"sample_every": 4}, 9, 9, None),
    ({"keep": "best", "patience": 2, "checkpoint_async": False}, 8, 4, "patience"),
    ({"keep": "best", "patience": 2, "checkpoint_minutes": 1e-9}, 8, 4, "patience"),  # saved far more often
    ({"checkpoint_every": None, "checkpoint_minutes": 1e-9}, 9, 9, None),
]


@pytest.mark.parametrize(("training", "done", "exported", "reason"), ENDS)
def test_a_run_ends_the_same_wherever_its_driver_was_killed(
    tmp_path: Path, training: dict[str, Any], done: int, exported: int, reason: str | None
) -> None:
    calls = train(tmp_path / "whole", training)
    whole = remains(tmp_path / "whole")
    assert whole["ledger.jsonl"].count("\n") == done
    assert whole["exported"] == whole["export/step"] == str(exported)
    assert json.loads(whole["certificate.json"])["step"] == exported
    stop = json.loads(whole.get("stop.json", "{}"))
    assert (stop.get("step"), stop.get("reason")) == ((done, reason) if reason else (None, None))
    assert set(whole["checkpoints"].split()) == {f"step-{s:07d}" for s in (done, exported)}
    for end in range(1, calls + 1):
        for after in (False, True):
            folder = tmp_path / f"{end}-{after}"
            with pytest.raises(Killed):
                train(folder, training, end, after)
            train(folder, training)
            assert remains(folder) == whole, (end, after)


def test_samples_are_taken_before_the_first_step_regularly_and_at_the_end(tmp_path: Path) -> None:
    train(tmp_path, {"sample_every": 4})
    lines = [json.loads(line) for line in (tmp_path / "x" / "samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["reply"]) for line in lines] == [(s, f"after {s}") for s in (0, 4, 8, 9)]


def test_going_back_behind_a_stop_forgets_it(tmp_path: Path) -> None:
    """Its checkpoint is damaged and was moved away: the run goes on from an earlier one."""
    training = {"keep": "best", "patience": 2, "keep_checkpoints": 3}
    train(tmp_path, training)
    whole = remains(tmp_path)
    run = RunDir(tmp_path / "x")
    run.checkpoint(8).rename(tmp_path / "away")
    train(tmp_path, training)
    assert remains(tmp_path) == whole


@pytest.mark.parametrize("during", ["begin_save", "timed_step", "finish_save"])
def test_what_a_stop_calls_saved_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: str) -> None:
    """Also where the signal comes while the copy of a checkpoint is made, or is being written."""
    train(tmp_path / "whole", {})
    stops, calls, usual = Stops(), 0, getattr(Rank, during)

    def signalled(rank: Rank, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        stops.received = 15 if calls == 3 else stops.received
        return usual(rank, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Rank, during, signalled)
        with pytest.raises(Interrupted, match=r"saved step \d of 9") as stopped:
            begun(tmp_path, {}, Group(None, False), stops).run()
    run = RunDir(tmp_path / "x")
    assert f"saved step {run.saved_steps()[-1]} of" in str(stopped.value) and len(run.rows()) == run.saved_steps()[-1]
    assert not list(run.checkpoints.glob(".*"))
    train(tmp_path, {})
    assert remains(tmp_path) == remains(tmp_path / "whole")


def test_a_checkpoint_in_flight_is_kept_when_the_reference_group_is_lost(tmp_path: Path) -> None:
    group = Group(None, False)
    run = begun(tmp_path, {"keep_checkpoints": 3}, group)
    run.build()
    for step in (1, 2):
        run.files.append(*group.rank.timed_step())  # type: ignore[arg-type]
        run.saves.save(step, now=False)
    run.save_whole(2, 0)
    assert run.files.saved_steps() == [1, 2] and not list(run.files.checkpoints.glob(".*"))
    assert run.saves.ahead is None


def test_a_large_export_is_read_back_when_the_workers_have_gone(tmp_path: Path) -> None:
    """It takes minutes and no GPU; until then the folder has no name that a loader would find."""
    closed: list[bool] = []

    class Large(Rank):
        def export(self, folder: Path) -> Exported:
            (made := unfinished(folder)).mkdir()
            (made / "step").write_text(str(self.step))
            return {"notes": [], "files": {}}

    class Leaving(Group):
        def close(self) -> None:
            closed.append(not (tmp_path / "x" / "export").exists())

    group = Leaving(None, False)
    group.rank = Large()
    run = begun(tmp_path, {}, group)
    run.run()
    assert closed == [True] and run.files.read_manifest()["export_checked"] == BYTES
    assert (run.files.export / "step").read_text() == str(TOTAL) and folder_faults(run.files.export) == {}
    assert not unfinished(run.files.export).exists()
