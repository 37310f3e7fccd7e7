"""Files of a run: whole or absent, resumable only as the same run."""

from __future__ import annotations

import errno
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from dpeer.config import Config
from dpeer.errors import CheckpointError
from dpeer.files import write_json, write_text
from dpeer.launcher.driver import as_begun
from dpeer.training.run_dir import RunDir, identity

FACTS = {"data": {"train": {"sha256": "d0"}}, "reference": {"hash": "r0"}}


def recipe(**changes: Any) -> Config:
    """A config with dotted changes."""
    tree: dict[str, Any] = {
        "name": "x",
        "model": {"path": "m"},
        "data": {"train": "d.jsonl"},
        "training": {"steps": 9},
        "objective": {"constraint": {"tolerance": {"A": 0.4, "E": math.inf}}},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return Config.model_validate(tree)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.begin(recipe(), FACTS)
    for step in range(1, 6):
        run.append({"step": step, "loss": 0.5}, {"step": step, "seconds": 1.0})
    return run


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


# Truncation


@pytest.mark.parametrize("tail", ["", '{"step": 6, "lo', "\0\0\0\0", "\n\n", "5\n", '"x"\n', "[1]\n", "{}\n"])
def test_truncate_forgets_later_lines_and_half_written_ones(run: RunDir, tail: str) -> None:
    for path in (run.ledger, run.timing):
        path.write_text(path.read_text() + tail)
    run.truncate(5)
    assert steps(run.ledger) == steps(run.timing) == [1, 2, 3, 4, 5]
    run.truncate(3)
    assert steps(run.ledger) == steps(run.timing) == [1, 2, 3]
    run.append({"step": 4}, {"step": 4})
    assert steps(run.ledger) == [1, 2, 3, 4]
    run.truncate(0)
    assert run.ledger.read_text() == run.timing.read_text() == ""


def test_truncate_survives_bytes_that_are_no_text(run: RunDir) -> None:
    with run.ledger.open("ab") as stream:
        stream.write(b'{"step": 6, "x": "\xff\xfe')
    run.truncate(5)
    assert steps(run.ledger) == [1, 2, 3, 4, 5]


def test_truncate_keeps_the_bytes_of_kept_lines(run: RunDir) -> None:
    before = run.ledger.read_bytes().splitlines(keepends=True)
    run.truncate(4)
    assert run.ledger.read_bytes() == b"".join(before[:4])


def test_nothing_to_truncate(tmp_path: Path) -> None:
    RunDir(tmp_path).truncate(0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["short", "hole", "garbled", "twice", "absent"])
@pytest.mark.parametrize("which", ["ledger", "timing"])
def test_truncate_refuses_missing_steps_and_touches_nothing(run: RunDir, damage: str, which: str) -> None:
    path: Path = getattr(run, which)
    lines = path.read_text().splitlines(keepends=True)
    if damage == "absent":
        path.unlink()
    else:
        damaged = {
            "short": lines[:3],
            "hole": lines[:1] + lines[2:],
            "garbled": [lines[0], "garbage\n", *lines[2:]],
            "twice": [lines[0], *lines[:4]],
        }
        path.write_text("".join(damaged[damage]))
    before = {p.name: p.read_bytes() for p in run.path.iterdir() if p.is_file()}
    with pytest.raises(CheckpointError, match=f"{which}.jsonl: only steps 1 to . of the 4 steps"):
        run.truncate(4)
    assert {p.name: p.read_bytes() for p in run.path.iterdir() if p.is_file()} == before


@pytest.mark.parametrize("tail", ["", '{"step": 4, "pro', '{"step": 5, "reply": "x"}\n', "\0\0\n", "{}\n", "[1]\n"])
def test_truncate_forgets_later_samples(run: RunDir, tail: str) -> None:
    """None of a run that starts anew: it samples before its first step again."""
    for step in (0, 2, 4):
        run.append_samples(step, [{"prompt": "p\n", "reply": "\u2028"}, {"prompt": "q", "reply": "r"}])
    whole = run.samples.read_bytes()
    run.samples.write_bytes(whole + tail.encode())
    run.truncate(4)
    assert run.samples.read_bytes() == whole
    run.truncate(3)
    assert steps(run.samples) == [0, 0, 2, 2]
    run.truncate(0)
    assert run.samples.read_bytes() == b""


def test_truncate_forgets_a_later_stop(run: RunDir) -> None:
    write_json(run.stop, {"step": 4, "reason": "patience", "patience": 1})
    run.truncate(4)
    assert run.stopped == {"step": 4, "reason": "patience", "patience": 1}
    run.truncate(3)
    assert run.stopped is None


# Resume


def test_same_run_is_resumable(run: RunDir) -> None:
    """Through JSON and back: infinite tolerances, tuples and paths must compare equal to themselves."""
    run.check_resumable(recipe(), FACTS)
    harmless = {
        "output_dir": "elsewhere",
        "cluster__policy_workers": 4,
        "cluster__reference": "colocated",
        "training__checkpoint_every": 7,
        "training__keep_checkpoints": 9,
        "training__wandb_project": "p",
        "training__sample_every": 5,
        "training__sequence_parallel": 2,
        "training__sample_prompts": 1,
    }
    run.check_resumable(recipe(**harmless), FACTS)


def test_where_activations_lie_may_change(tmp_path: Path) -> None:
    run, recomputed = RunDir(tmp_path), {"model__gradient_checkpointing": True}
    run.begin(recipe(**recomputed), FACTS)
    spared = recipe(**recomputed, model__offload_activations=True, model__mlp_tile=64)
    run.check_resumable(spared, FACTS)
    assert identity(spared, FACTS) == identity(recipe(**recomputed), FACTS)


def test_a_map_by_which_the_records_are_the_same_may_change(run: RunDir) -> None:
    """A column that was ignored when the run began, and would be read now, is left out by a map."""
    mapped, others = recipe(data__map={"tools": "none"}), {"train": {"sha256": "d1"}}
    run.check_resumable(mapped, FACTS)
    for facts in (FACTS | {"data": others}, {}):
        with pytest.raises(CheckpointError, match=r"data\.map: was None, now"):
            run.check_resumable(mapped, facts)


@pytest.mark.parametrize("judged", [{"training__keep": "best"}, {"training__stop_when": "certified"}])
def test_checkpoints_that_are_judged_keep_their_schedule(tmp_path: Path, judged: dict[str, Any]) -> None:
    run = RunDir(tmp_path)
    run.begin(recipe(**judged), FACTS)
    run.check_resumable(recipe(**judged, training__keep_checkpoints=9), FACTS)
    with pytest.raises(CheckpointError, match=r"training\.checkpoint_every: was 50, now 7"):
        run.check_resumable(recipe(**judged, training__checkpoint_every=7), FACTS)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 3}, "seed: was 0, now 3"),
        ({"training__steps": 10}, "training.steps: was 9, now 10"),
        ({"training__optimizer": {"lr": 0.5}}, "training.optimizer.lr: was 1e-06, now 0.5"),
        ({"objective__beta": 0.2}, "objective.beta: was 0.1, now 0.2"),
        (
            {"objective__constraint": {"tolerance": {"A": 0.4, "E": 0.1}}},
            "objective.constraint.tolerance.E: was 'inf', now 0.1",
        ),
        ({"objective__constraint": {"tolerance": 0.4}}, "objective.constraint.tolerance: was {"),
        ({"model__lora": {"rank": 2}}, "model.lora: was None, now {"),
        ({"data__train": "e.jsonl"}, "data.train: was 'd.jsonl', now 'e.jsonl'"),
    ],
)
def test_resume_names_what_changed(run: RunDir, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        run.check_resumable(run.at_its_rate(recipe(**changes)), FACTS)
    changed = str(caught.value).splitlines()[1:-1]
    assert len(changed) == 1 and says in changed[0]


def test_a_rate_that_no_recipe_gives_stays_that_of_the_run(tmp_path: Path) -> None:
    """As after a version whose default for adapters was another one."""
    run, given = RunDir(tmp_path), {"training__optimizer": {"lr": 1e-6}}
    open_, said = recipe(model__lora={}), list[str]()
    assert as_begun(open_, run, said.append) == open_ and not said
    run.begin(recipe(model__lora={}, **given), FACTS)
    run.check_resumable(as_begun(open_, run, said.append), FACTS)
    assert said == ["training.optimizer.lr is 1e-06, as when this run began: the recipe gives none (a new run: 2e-05)."]
    with pytest.raises(CheckpointError, match=r"lr: was 1e-06, now 2e-05"):
        other = recipe(model__lora={}, training__optimizer={"lr": 2e-5})
        run.check_resumable(as_begun(other, run, said.append), FACTS)


def test_a_renamed_run_is_told_how_to_go_on(run: RunDir) -> None:
    with pytest.raises(CheckpointError, match=rf"began as x; .*renamed.*`mv {run.path} .*/x`.*--set name=x"):
        run.check_resumable(recipe(name="y"), FACTS)


def test_resume_refuses_other_data_and_reference(run: RunDir) -> None:
    for key, other in (("data", {"train": {"sha256": "d1"}}), ("reference", {"hash": "r1"})):
        with pytest.raises(CheckpointError, match=f"{key}: was .*0.*now .*1"):
            run.check_resumable(recipe(), FACTS | {key: other})


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing to resume \(no manifest.json\)"):
        RunDir(tmp_path).check_resumable(recipe(), FACTS)


def test_run_metadata(run: RunDir) -> None:
    manifest = json.loads(run.manifest.read_text())
    assert (
        manifest["data"] == FACTS["data"] and manifest["config"]["objective"]["constraint"]["tolerance"]["E"] == "inf"
    )
    assert manifest["versions"]["torch"] and manifest["finished"] is None and not run.finished
    run.finish(9, "reloaded")
    assert json.loads(run.manifest.read_text())["exported_step"] == 9
    assert run.finished and json.loads(run.manifest.read_text())["config"] == manifest["config"]
    assert not RunDir(run.path / "other").finished


# Writing


def test_write_json_is_strict_and_leaves_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"a": math.inf, "b": [-math.inf, math.nan], "c": (1, 2)})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(path.read_text(), parse_constant=refuse) == {"a": "inf", "b": ["-inf", None], "c": [1, 2]}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    monkeypatch.setattr("dpeer.files.os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new")
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_ledger_lines_are_strict_json(run: RunDir) -> None:
    with pytest.raises(ValueError, match="JSON"):
        run.append({"step": 6, "loss": math.nan}, {"step": 6})


def test_sync(run: RunDir) -> None:
    before = run.ledger.read_bytes()
    run.sync()
    assert run.ledger.read_bytes() == before


# Checkpoints


def saved(run: RunDir, step: int) -> None:
    run.checkpoint(step).mkdir(parents=True)
    (run.checkpoint(step) / "state.json").write_text("{}")


def test_only_complete_checkpoints_count(run: RunDir) -> None:
    assert run.saved_steps() == []
    for step in (10, 9, 10_000_000):
        saved(run, step)
    run.checkpoint(11).mkdir()
    partial = run.temporary_checkpoint(12)
    partial.mkdir()
    (partial / "state.json").write_text("{}")
    assert run.saved_steps() == [9, 10, 10_000_000]
    run.clear_partial()
    assert not partial.exists() and run.saved_steps() == [9, 10, 10_000_000]


def test_prune_keeps_the_newest(run: RunDir) -> None:
    for step in (2, 4, 6, 8):
        saved(run, step)
    run.prune(5)
    assert run.saved_steps() == [2, 4, 6, 8]
    run.prune(2, spared=2)
    assert run.saved_steps() == [2, 6, 8] and not run.checkpoint(4).exists()
    run.prune(1, spared=8)
    assert run.saved_steps() == [8]


def test_a_checkpoint_that_cannot_be_removed_ends_no_run_and_is_never_half_of_one(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (2, 4, 6):
        saved(run, step)
    real = shutil.rmtree

    def dies_within(folder: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            (folder / "state.json").unlink()
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(shutil, "rmtree", dies_within)
    run.prune(2)
    assert run.saved_steps() == [4, 6] and not run.checkpoint(2).exists()
    assert "warning:" in (said := capsys.readouterr().out) and "cannot be removed (Permission denied)" in said
    monkeypatch.setattr(shutil, "rmtree", real)
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EPERM, "no")))
    run.prune(1)
    assert run.saved_steps() == [4, 6]
    run.clear_partial()
    assert [p.name for p in run.checkpoints.iterdir() if p.name.startswith(".")] == []


def test_clear_partial_on_a_fresh_run(tmp_path: Path) -> None:
    RunDir(tmp_path / "none").clear_partial()


# Lost checkpoints


def test_ledger_longer_than_an_unsaved_run_is_never_wiped(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.begin(recipe(training__checkpoint_every=3), FACTS)
    for step in range(1, 5):
        run.refuse_lost_checkpoints()
        run.append({"step": step}, {"step": step})
    with pytest.raises(CheckpointError, match="ledger has 4 steps and one was saved every 3"):
        run.refuse_lost_checkpoints()
    assert steps(run.ledger) == [1, 2, 3, 4]


def test_leftovers_of_a_killed_save_or_conversion_go(run: RunDir) -> None:
    whole = run.checkpoint(3)
    for folder in (whole, run.temporary_checkpoint(4), whole / ".universal-abc", whole / "universal"):
        folder.mkdir(parents=True)
    (whole / "state.json").write_text("{}")
    run.clear_partial()
    assert sorted(p.name for p in whole.iterdir()) == ["state.json", "universal"]
    assert run.saved_steps() == [3] and not run.temporary_checkpoint(4).exists()
