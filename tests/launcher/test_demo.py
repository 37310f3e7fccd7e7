"""The demo compares what it says it compares, and skips only what is really done."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from dpeer.config_io import resolved
from dpeer.errors import ConfigError
from dpeer.eval.irt.result import Result
from dpeer.eval.toy_judges import SEVERITIES
from dpeer.integrity import write_state
from dpeer.launcher import demo, demo_evaluation, demo_plan
from dpeer.report.run import Certificate
from dpeer.training.run_dir import RunDir

ESTIMATE = ("ability", "ability_low", "ability_high")
SEVERITY = ("severity", "severity_low", "severity_high")


def differences(a: object, b: object, prefix: str = "") -> set[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        return set().union(*(differences(a.get(k), b.get(k), f"{prefix}{k}.") for k in a.keys() | b.keys()))
    return set() if a == b else {prefix[:-1]}


def test_arms_differ_from_the_lagrangian_run_only_as_declared(tmp_path: Path) -> None:
    configs = {arm.run: resolved(demo.arm_config(arm, tmp_path, 5)) for arm in demo.ARMS}
    lagrangian = configs["lagrangian"]
    assert lagrangian["objective"]["constraint"]["enforce"] and lagrangian["seed"] == 5
    assert differences(configs["uniform"], lagrangian) == {"name", "objective.constraint.enforce"}
    assert differences(configs["pooled"], lagrangian) == {"name", "objective.constraint.enforce", "objective.primary"}
    assert configs["sft"]["objective"]["kind"] == "sft"
    assert lagrangian["cluster"]["policy_workers"] >= 2 and lagrangian["cluster"]["reference"] == "workers"


@pytest.mark.parametrize("finished", [True, False])
def test_only_a_finished_run_of_the_same_config_is_skipped(tmp_path: Path, finished: bool) -> None:
    config = demo.arm_config(demo.ARMS[-1], tmp_path, 0)
    files = RunDir(config.run_dir)
    assert not demo._up_to_date(config)
    files.begin(config, {})
    if finished:
        files.finish(1, "reloaded")
    assert demo._up_to_date(config) == finished and files.manifest.exists()
    changed = files.read_manifest()
    changed["config"]["objective"]["beta"] = 0.123
    write_state(files.manifest, changed)
    assert not demo._up_to_date(config) and not files.path.exists()


def test_table_marks_verdicts_and_fits_a_terminal(tmp_path: Path) -> None:
    reply = "".join(f"{c} " for c in ("You are right.", "I cannot say."))
    verdicts = {"E": "satisfied", "A": "violated", "T": "undecided", "C": "satisfied"}
    certificate = Certificate.model_validate(
        {
            "constraints": [{"name": d, "verdict": v} for d, v in verdicts.items()],
            "selection": {"overall": {"rate": 0.875, "n": 8}},
        }
    )
    trained = demo._row(demo.UNIFORM, [reply] * 2, certificate, tmp_path / "report.html")
    rows = [demo._row("base", [reply]), trained]
    assert (rows[1].satisfied, rows[1].constraints, rows[1].note) == (2, 4, "1 violated, 1 undecided")
    out = io.StringIO()
    demo.show(Console(file=out, width=80), rows, {demo.UNIFORM: demo._verdicts(certificate)})
    line = next(x for x in out.getvalue().splitlines() if "uniform" in x)
    assert [line.count(mark) for mark in "✓✗?"] == [2, 1, 1] and "…" not in out.getvalue()
    assert line.split()[-1] == "0.88" and trained.good == dict.fromkeys(trained.shares, (False, False))


def test_severities_are_shown_as_planted_realised_and_recovered() -> None:
    ability = pd.DataFrame([("base", "T", 0.5, 0.3, 0.7)], columns=["model", "dimension", *ESTIMATE])
    judges = pd.DataFrame([(name, 0.7, 0.6, 0.8) for name in SEVERITIES], columns=["judge", *SEVERITY])
    result = Result({"ability": ability, "judges": judges}, {"reasons": []}, (), {})
    out = io.StringIO()
    realised = dict.fromkeys(SEVERITIES, 0.65)
    demo_evaluation.show(Console(file=out, width=80), result, realised, {"base": "base"}, ["T"])
    line = next(x for x in out.getvalue().splitlines() if "severe " in x)
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        "severe",
        "+0.80",
        "+0.65",
        "+0.70",
        "+0.60 to +0.80",
    ]


def test_only_what_a_demo_made_is_removed(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    mine = tmp_path / "runs"
    (mine / "base").mkdir(parents=True)
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds notes.txt and is no folder of a demo"):
        demo.clear(mine, console)
    assert (mine / "base").is_dir()
    (mine / "world.json").write_text("{}")  # a demo of another seed, and a run that the user added
    (mine / "lagrangian").mkdir()
    demo.clear(mine, console)
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]
    demo.clear(tmp_path / "new", console)


def test_an_output_that_can_be_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="no folder can be made there"):
        demo.prepare_world(tmp_path / "file", 0, Console(file=io.StringIO()))


def test_a_dry_run_says_what_is_left_to_do_and_writes_nothing(tmp_path: Path) -> None:
    pooled, lagrangian = (demo.arm_config(arm, tmp_path, 0) for arm in (demo.ARMS[1], demo.ARMS[3]))
    RunDir(pooled.run_dir).begin(pooled, {})
    RunDir(lagrangian.run_dir).begin(lagrangian, {})
    RunDir(lagrangian.run_dir).finish(80, "reloaded")
    before = sorted(tmp_path.rglob("*"))
    printed = io.StringIO()
    demo_plan.show(tmp_path, 0, Console(file=printed, width=200))
    states = dict(line.split("  ", 1) for line in printed.getvalue().splitlines()[1:])
    states = {name: what.strip().partition(":")[0] for name, what in states.items()}
    assert states["SFT on golden"] == "to be trained" and states["pooled DPO"] == "to be continued"
    assert states["Lagrangian"] == "finished" and sorted(tmp_path.rglob("*")) == before
    assert dict(demo_plan.steps(tmp_path, 7))["Lagrangian"].startswith("to be trained anew, as its recipe has changed")
