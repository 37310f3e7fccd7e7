"""Training under torchrun is the run that it is under Ray: same ledger, files, lock, signals and resumption."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psutil
import pytest

from tests.launcher.conftest import Lab

COLOCATED = "cluster.reference=colocated"


def drivers(lab: Lab) -> list[psutil.Process]:
    """Ranks of the newest command, rank 0 first."""
    children = psutil.Process(lab.launched[-1].process.pid).children(recursive=True)
    ranks = [p for p in children if "dpeer.launcher.torchrun" in " ".join(p.cmdline())]
    return sorted(ranks, key=lambda p: p.environ()["RANK"])


@pytest.fixture(scope="module")
def baseline(lab: Lab) -> Path:
    """The same run under Ray."""
    run = lab.train("ray", COLOCATED)
    assert run.wait() == 0, run.output
    return lab.run("ray")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ledger_and_files_are_those_of_a_run_under_ray(lab: Lab, baseline: Path) -> None:
    run = lab.torchrun(2, "torch", COLOCATED)
    assert run.wait(300) == 0, run.output
    assert (lab.run("torch") / "ledger.jsonl").read_bytes() == (baseline / "ledger.jsonl").read_bytes()
    for name in ("certificate.json", "report.html", "export/model.safetensors", "export/README.md", "manifest.json"):
        assert (lab.run("torch") / name).is_file() and (baseline / name).is_file(), name
    ours, theirs = (json.loads((r / "certificate.json").read_text()) for r in (lab.run("torch"), baseline))
    assert ours == theirs
    again = lab.torchrun(2, "torch", COLOCATED)
    assert again.wait(200) == 0 and "finished; nothing to do" in again.output, again.output


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_terminated_run_is_saved_and_goes_on(lab: Lab, baseline: Path) -> None:
    run = lab.torchrun(2, "stopped", COLOCATED)
    run.until(lambda: lab.steps("stopped") > 5, 200)
    drivers(lab)[0].send_signal(signal.SIGUSR1)
    assert run.wait(100) == 1, run.output
    assert "saved step" in run.output and run.survivors() == []
    assert lab.steps("stopped") < 24
    again = lab.torchrun(2, "stopped", COLOCATED)
    assert again.wait(300) == 0, again.output
    assert (lab.run("stopped") / "ledger.jsonl").read_bytes() == (baseline / "ledger.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_second_driver_is_refused_and_a_killed_follower_ends_the_run(lab: Lab) -> None:
    run = lab.torchrun(2, "killed", COLOCATED, "training.steps=5000")
    run.until(lambda: lab.steps("killed") > 1, 200)
    follower = drivers(lab)[1]
    second = lab.torchrun(1, "killed", COLOCATED, "training.steps=5000")
    assert second.wait(200) == 1 and "another driver" in second.output, second.output
    follower.kill()
    assert run.wait(100) == 1, run.output
    assert run.survivors() == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_process_without_torchrun_fills_the_cache_itself(lab: Lab) -> None:
    changes = ("name=alone", "cluster.reference=cache", "training.steps=3")
    sets = [part for change in changes for part in ("--set", change)]
    run = lab.launch("dpeer.launcher.torchrun", "recipe.yaml", *sets)
    assert run.wait(200) == 0, run.output
    assert lab.steps("alone") == 3 and (lab.run("alone") / "report.html").is_file()


def test_a_group_of_reference_workers_is_refused(lab: Lab) -> None:
    run = lab.launch("dpeer.launcher.torchrun", "recipe.yaml", "--set", "name=refused")
    assert run.wait(200) == 1 and "Set it to colocated, or to cache" in run.output
