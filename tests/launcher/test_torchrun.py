"""Training under torchrun is the run that it is under Ray: same ledger, files, lock, signals and resumption."""

from __future__ import annotations

import atexit
import gc
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from dpeer.config_model import Model
from dpeer.errors import ConfigError
from dpeer.launcher import torchrun
from dpeer.launcher.recipe import training_config
from dpeer.model.tree_lm import TreeLM
from dpeer.tensor_file import read_tensors
from dpeer.training import plain
from tests.launcher.conftest import Lab, Launched

COLOCATED = "cluster.reference=colocated"
FAULTY = "tests.launcher.faulty_rank"


def drivers(lab: Lab, module: str = "dpeer.launcher.torchrun") -> list[psutil.Process]:
    """Ranks of the newest command, rank 0 first."""
    children = psutil.Process(lab.launched[-1].process.pid).children(recursive=True)
    ranks = [p for p in children if module in " ".join(p.cmdline())]
    return sorted(ranks, key=lambda p: p.environ()["RANK"])


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, (0, 1, "127.0.0.1")),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}, (1, 2, "n1")),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"MASTER_ADDR": "n1"}, (0, 1, "127.0.0.1")),
    ],
)
def test_variables_are_those_of_torchrun_or_none(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], found: tuple[int, int, str] | None
) -> None:
    for name in torchrun.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        "dpeer.training.world.start", lambda rank, size, address, *rest, **options: (rank, size, address)
    )
    config = training_config("demo", ["cluster.gpus_per_worker=0"])
    if found is None:
        with pytest.raises(ConfigError, match=r"but not .*MASTER_PORT.*torchrun sets all"):
            torchrun.join(config)
    else:
        assert torchrun.join(config) == found  # type: ignore[comparison-overlap]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ledger_and_files_are_those_of_a_run_under_ray(lab: Lab, colocated: Launched) -> None:
    baseline = lab.run("colocated")
    run = lab.torchrun(2, "torch", COLOCATED)
    assert run.wait(300) == 0, run.output
    assert (lab.run("torch") / "ledger.jsonl").read_bytes() == (baseline / "ledger.jsonl").read_bytes()
    for name in (
        "certificate.json",
        "heldout.safetensors",
        "report.html",
        "export/model.safetensors",
        "export/README.md",
        "manifest.json",
    ):
        assert (lab.run("torch") / name).is_file() and (baseline / name).is_file(), name
    ours, theirs = (json.loads((r / "certificate.json").read_text()) for r in (lab.run("torch"), baseline))
    assert ours == theirs
    again = lab.torchrun(2, "torch", COLOCATED)
    assert again.wait(200) == 0 and "finished; nothing to do" in again.output, again.output


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_stopped_run_is_saved_and_goes_on(lab: Lab, colocated: Launched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pre-emption is told to rank 0; torchrun itself passes SIGTERM on to all ranks; the last stop is in no step."""
    for steps, number in ((5, signal.SIGUSR1), (12, signal.SIGTERM)):
        run = lab.torchrun(2, "torch-stopped", COLOCATED)
        run.until(lambda steps=steps: lab.steps("torch-stopped") > steps, 200)
        (drivers(lab)[0] if number == signal.SIGUSR1 else run.process).send_signal(number)
        assert run.wait(100) == 1, run.output
        assert "saved step" in run.output and run.survivors() == []
        assert steps < lab.steps("torch-stopped") < 24
    with monkeypatch.context() as patched:
        patched.setenv(
            "FAULT", "preempted"
        )  # the other ranks are in the middle of an order then, and hear no further one
        run = lab.torchrun(2, "torch-stopped", COLOCATED, module=FAULTY)
        assert run.wait(250) == 1, run.output
    assert "Stopped by a signal outside training" in run.output and "[rank" not in run.output, run.output
    assert run.survivors() == []
    again = lab.torchrun(2, "torch-stopped", COLOCATED)
    assert again.wait(300) == 0, again.output
    for name in ("ledger.jsonl", "certificate.json"):
        assert (lab.run("torch-stopped") / name).read_bytes() == (lab.run("colocated") / name).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("fault", "message", "tracebacks"),
    [
        ("known", "rank 1: only this rank has a fault.", []),
        ("bug", "ValueError: a bug on this rank", ["[rank1]: Traceback"]),
        ("silent", "has not answered for 20 s (cluster.timeout_s) during 'save'", []),
    ],
)
def test_a_fault_of_one_rank_ends_all_with_its_message(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, fault: str, message: str, tracebacks: list[str]
) -> None:
    monkeypatch.setenv("FAULT", fault)
    run = lab.torchrun(2, f"torch-{fault}", COLOCATED, "cluster.timeout_s=20", module=FAULTY)
    assert run.wait(200) == 1, run.output
    assert run.output.count(message) == 1, run.output
    assert re.findall(r"\[rank\d\]: Traceback", run.output) == tracebacks, run.output
    assert run.survivors() == []


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("engine", ["plain", "deepspeed"])
def test_a_checkpoint_written_beside_the_steps_counts_when_all_ranks_have_their_part(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """Rank 1's disk fails, it dies while it writes, and a stop comes meanwhile; what goes on is the undisturbed run."""
    options = (COLOCATED, f"cluster.engine={engine}", "training.steps=12", "training.stop_when=never")
    undisturbed = lab.torchrun(2, f"beside-{engine}", *options)
    assert undisturbed.wait(300) == 0, undisturbed.output
    whole = lab.run(f"beside-{engine}")
    saves = [row["save"] for row in map(json.loads, (whole / "timing.jsonl").read_text().splitlines()) if "save" in row]
    assert [save["step"] for save in saves] == [4, 8] and all(save["background"] for save in saves)

    for fault, words in (
        ("unwritable", "rank 1 on .* could not write its part"),
        ("killed", "another rank has ended|Stopped by a signal outside training"),  # torchrun may be first
        ("slow", "Stopped by a signal; saved step"),
    ):
        name = f"beside-{engine}-{fault}"
        with monkeypatch.context() as patched:
            patched.setenv("FAULT", fault)
            run = lab.torchrun(2, name, *options, module=FAULTY)
            if fault == "slow":
                run.until(lambda name=name: lab.steps(name) > 8, 200)
                drivers(lab, FAULTY)[0].send_signal(signal.SIGUSR1)
            assert run.wait(200) == 1, run.output
        assert re.search(words, run.output) and run.survivors() == [], run.output
        saved = {p.name for p in (lab.run(name) / "checkpoints").iterdir()}
        if fault == "slow":
            assert {"step-0000008", f"step-{lab.steps(name):07d}"} <= saved, run.output
        else:
            assert saved == {"step-0000004", ".writing-0000008"}, run.output
        again = lab.torchrun(2, name, *options)
        assert again.wait(300) == 0, again.output
        for file in ("ledger.jsonl", "certificate.json"):
            assert (lab.run(name) / file).read_bytes() == (whole / file).read_bytes(), (fault, file)
        left = {p.name for p in (lab.run(name) / "checkpoints").iterdir()}
        assert "step-0000012" in left and not any(folder.startswith(".") for folder in left)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_second_driver_is_refused_and_a_killed_follower_ends_the_run(lab: Lab) -> None:
    run = lab.torchrun(2, "torch-killed", COLOCATED, "training.steps=5000")
    run.until(lambda: lab.steps("torch-killed") > 1, 200)
    follower = drivers(lab)[1]
    second = lab.torchrun(1, "torch-killed", COLOCATED, "training.steps=5000")
    assert second.wait(200) == 1 and "another driver" in second.output, second.output
    follower.kill()
    assert run.wait(100) == 1, run.output
    assert run.survivors() == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_model_that_is_trained_fills_the_cache_before_its_first_step(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process without torchrun. The weights are loaded once; a reference in a folder of its own is loaded beside
    them and scores the same. A cache that is lost is filled again before a checkpoint is loaded."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    shutil.copytree(lab.folder / "model", tmp_path / "model")
    loaded: list[bool] = []
    build = plain.build_lm

    def counted(spec: Model, seed: int, *, reference: bool = False) -> TreeLM:
        loaded.append(reference)
        return build(spec, seed, reference=reference)

    monkeypatch.setattr(plain, "build_lm", counted)
    changes = ("cluster.reference=cache", "cluster.policy_workers=1", "training.steps=3", "data.dual=50%")

    def trained(folder: Path, *more: str) -> tuple[list[bool], dict[str, list[float]]]:
        """Which models were loaded, and the caches."""
        loaded.clear()
        sets = (f"output_dir={folder}", "name=alone", *changes, *more)
        assert torchrun.main([str(lab.folder / "recipe.yaml"), *sets]) == 0
        caches = sorted((folder / "reference_cache").iterdir())
        return [*loaded], {path.name: read_tensors(path)[0]["logprobs"].tolist() for path in caches}

    loads, caches = trained(tmp_path / "one")
    assert loads == [False] and len(caches) == 3  # training, dual and held-out split
    assert trained(tmp_path / "two", f"model.reference_path={tmp_path / 'model'}") == ([True, False], caches)
    shutil.rmtree(tmp_path / "one" / "alone" / "export")  # made again from the checkpoint, with all that it takes
    shutil.rmtree(tmp_path / "one" / "reference_cache")
    assert trained(tmp_path / "one") == ([False], caches)


def test_a_group_of_reference_workers_is_refused(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whoever calls the command from a program of their own has that program's exit left as it was."""
    registered = list[Any]()
    monkeypatch.setattr(atexit, "register", registered.append)
    assert torchrun.main([str(lab.folder / "recipe.yaml"), "--set", "name=refused"]) == 1
    assert "Set it to colocated, or to cache" in capsys.readouterr().err
    assert gc.freeze not in registered
