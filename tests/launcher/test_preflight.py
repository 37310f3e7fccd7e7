"""Planted faults, each caught by its name. Where one machine can have the fault for real, it has it for real."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dpeer.config import Config
from dpeer.config_io import load_config
from dpeer.errors import CheckpointError, ClusterError, ConfigError
from dpeer.estimate.saved_size import saved_size
from dpeer.integrity import write_state
from dpeer.launcher import torchrun
from dpeer.launcher.cli import app
from dpeer.launcher.cluster import connect
from dpeer.launcher.preflight import judge
from dpeer.launcher.preflight.checklist import Checklist, Fault, Warn
from dpeer.launcher.preflight.full import data, full
from dpeer.launcher.preflight.probe import Probe, unreachable
from dpeer.launcher.preflight.quick import _activations, check_quickly, quick
from dpeer.launcher.train import train
from dpeer.model.lm import load_shape
from dpeer.training import preflight
from dpeer.training.prepare import prepare
from dpeer.training.reference import cache_path, write_cache
from dpeer.training.run_dir import RunDir

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with connect():
        yield


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A file system of its own on `folder`: skips where this user or machine may not mount."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "dpeer-test", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def recipe(lab: Any, *changes: str) -> Config:
    return load_config(lab.folder / "recipe.yaml", changes)


def red(checks: Checklist) -> dict[str, str]:
    return {line.name: f"{line.found} {line.fix}" for line in checks.lines if line.status == "failed"}


def checked(function: Any, *args: Any) -> dict[str, str]:
    checks = Checklist()
    function(*args[:1], checks, *args[1:])
    return red(checks)


def audited(config: Config) -> dict[str, str]:
    return checked(lambda c, checks: data(c, checks, lambda text: None), config)


# One machine


def test_sound_recipe_passes_the_quick_checks(lab: Any, ray_here: None, capsys: pytest.CaptureFixture[str]) -> None:
    config = recipe(lab)
    assert checked(quick, config) == {} and audited(config) == {}
    check_quickly(config)
    assert "checks passed" in capsys.readouterr().out
    assert not list(config.output_dir.glob(".preflight-*"))


def test_read_only_output(lab: Any, ray_here: None, tmp_path: Path) -> None:
    if os.getuid():
        (tmp_path / "runs").mkdir(mode=0o555)
        found = checked(quick, recipe(lab, f"output_dir={tmp_path / 'runs'}"))
    else:
        with mounted(tmp_path / "runs", "-o", "ro") as folder:
            found = checked(quick, recipe(lab, f"output_dir={folder}"))
            assert list(checked(quick, recipe(lab, f"output_dir={folder / 'new'}"))) == ["output folder"]
    assert list(found) == ["output folder"]
    assert "cannot be written to" in found["output folder"] and "read-write" in found["output folder"]


def test_full_disk(lab: Any, ray_here: None, tmp_path: Path) -> None:
    with mounted(tmp_path / "runs", "-o", "size=2m") as folder:
        config = recipe(lab, f"output_dir={folder}")
        found = checked(quick, config)
        assert list(found) == ["disk space"] and "2.0 MiB free" in found["disk space"]
        with pytest.raises(ClusterError, match=r"1 of \d+ checks failed.*disk space") as caught:
            check_quickly(config)
        assert "keep_checkpoints" in str(caught.value)
        with suppress(OSError):
            (folder / "filler").write_bytes(bytes(2**22))
        found = checked(quick, config)
        assert list(found) == ["output folder", "disk space"] and "No space left" in found["output folder"]


def test_missing_node_and_missing_gpus(lab: Any, ray_here: None) -> None:
    found = checked(quick, recipe(lab, "cluster.nodes=4", "cluster.gpus_per_worker=1"))
    assert list(found) == ["nodes", "placement"]
    assert "cluster.nodes wants 4" in found["nodes"] and "Start the other 3" in found["nodes"]
    assert "wanted 2 policy + 1 reference workers of 0.4 CPU, 1 GPU each" in found["placement"]


def test_model_too_large_for_the_host(lab: Any) -> None:
    with pytest.raises(Fault, match=r"280\.0 GiB on one node; a has 128\.0 GiB"):
        judge.host_memory({"a": 128 * 2**30, "b": 512 * 2**30}, {"a": 1, "b": 1}, 280 * 2**30)
    assert isinstance(judge.host_memory({"a": 512 * 2**30}, {"a": 2**30}, 280 * 2**30), Warn)


@pytest.mark.parametrize(("team", "packs"), [("1", 4), ("2", 2), ("auto", 1)])
def test_activations_that_a_host_may_not_hold(lab: Any, team: str, packs: int) -> None:
    """Of a pack of max_tokens, in fp32: two layers' hidden states, for each group of four ranks on a node. Records may
    be shorter, so that nothing is refused."""
    spared = ("model.gradient_checkpointing=true", "model.offload_activations=true")
    config = recipe(
        lab, *spared, "cluster.policy_workers=8", f"training.sequence_parallel={team}", "training.tokens_per_pack=64"
    )
    shape, size = load_shape(config.model.path), saved_size(config)
    assert size.activations == shape.num_hidden_layers * shape.hidden_size * 4 * config.data.max_tokens
    assert saved_size(recipe(lab)).activations == 0
    needed = _activations(config, 2, size)
    assert needed == packs * size.activations
    warned = judge.host_activations({"a": needed - 1, "b": 2 * needed}, needed)
    assert isinstance(warned, Warn) and re.search("take up to .*; a has", warned.found)
    assert "lower training.tokens_per_pack" in warned.fix
    assert isinstance(judge.host_activations({"a": needed}, needed), str)


def test_a_cap_on_the_length_of_records_refuses_no_run(lab: Any, ray_here: None) -> None:
    """Though packs of records that long would take more than any machine has."""
    spared = ("model.gradient_checkpointing=true", "model.offload_activations=true", "data.max_tokens=100000000000")
    checks = Checklist()
    quick(recipe(lab, *spared), checks)
    (line,) = (line for line in checks.lines if line.name == "host activations")
    assert line.status == "warning" and checks.ok


def test_faulty_recipe_is_a_line_of_its_own(lab: Any) -> None:
    result = CliRunner().invoke(app, ["preflight", str(lab.folder / "recipe.yaml"), "--set", "seed=x", "--json"])
    answer = json.loads(result.stdout)
    assert result.exit_code == 1 and not answer["ok"]
    assert [(c["name"], c["status"]) for c in answer["checks"]] == [("config", "failed")]
    assert "seed: 'x' given" in answer["checks"][0]["found"]


@pytest.mark.parametrize(
    "field", ["objective.constraint.tolerance", "objective.certificate.tolerance", "objective.primary"]
)
def test_an_objective_of_other_dimensions_is_refused_before_workers_are_built(
    lab: Any, tmp_path: Path, field: str
) -> None:
    """Under Ray, under torchrun and by preflight."""
    config = recipe(lab, f"{field}={{A: 3, C: 3, E: 3}}", f"output_dir={tmp_path}", "cluster.gpus_per_worker=0")
    nobody: Any = None
    for refuses in (lambda: train(config, nobody), lambda: torchrun.drive(config, nobody)):
        with pytest.raises(ConfigError, match=f"{field} gives no value for T, but the data has"):
            refuses()
    assert f"{field} gives no value for T" in checked(data, config, print)["objective"]


# Data, template, reference, checkpoints


@pytest.fixture
def begun(lab: Any, tmp_path: Path) -> Config:
    """A run that has begun and saved, with model files of its own that a test may change."""
    model = shutil.copytree(lab.folder / "model", tmp_path / "model")
    reference = shutil.copytree(lab.folder / "model", tmp_path / "reference")
    config = recipe(lab, f"output_dir={tmp_path}", f"model.path={model}", f"model.reference_path={reference}")
    files, facts = RunDir(config.run_dir), prepare(config).facts
    files.begin(config, facts)
    write_state(files.checkpoint(4) / "state.json", {"step": 4, "facts": facts})
    for step in range(1, 5):
        files.append({"step": step}, {"step": step})
    files.bind(files.checkpoint(4), 4, files.end(files.ledger))
    assert audited(config) == {}
    return config


def test_mismatched_chat_template(begun: Config) -> None:
    for folder in (begun.model.path, str(begun.model.reference_path)):
        path = Path(folder) / "chat_template.jinja"
        path.write_text(path.read_text().replace("'assistant\n'", "'assistant \n'") + "{# another #}")
    found = audited(begun)
    assert "began with chat template" in found["chat template"] and "Restore" in found["chat template"]


def test_policy_and_reference_with_different_templates(lab: Any, tmp_path: Path) -> None:
    theirs = shutil.copytree(lab.folder / "model", tmp_path / "reference")
    (theirs / "chat_template.jinja").write_text((theirs / "chat_template.jinja").read_text() + " ")
    found = audited(recipe(lab, f"model.reference_path={theirs}"))
    assert list(found) == ["records"] and "another chat template" in found["records"]


def test_missing_chat_template(lab: Any, tmp_path: Path) -> None:
    model = shutil.copytree(lab.folder / "model", tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    found = audited(recipe(lab, f"model.path={model}"))
    assert list(found) == ["records"] and "has no chat template" in found["records"]


def test_changed_reference(begun: Config) -> None:
    from dpeer.toyworld.model import tiny_model

    reference = Path(str(begun.model.reference_path))
    other = tiny_model(reference.with_name("other"), "qwen3", 2, vocab=400)
    shutil.copy(other / "model.safetensors", reference / "model.safetensors")
    found = audited(begun)
    assert "began with reference" in found["reference weights"] and "other weights" in found["reference weights"]
    assert "belongs to another run: reference" in found["checkpoints"]


def test_stale_checkpoint_of_another_model(lab: Any, tmp_path: Path) -> None:
    """Copied into the folder of a new run, so that no manifest could tell."""
    from dpeer.toyworld.model import tiny_model

    other = tiny_model(tmp_path / "other", "qwen3", 2, vocab=400)
    shutil.copytree(lab.folder / "model", tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(other / "model.safetensors", tmp_path / "model" / "model.safetensors")
    config = recipe(lab, f"output_dir={tmp_path}")
    theirs = recipe(lab, f"model.path={tmp_path / 'model'}")
    folder = RunDir(config.run_dir).checkpoint(4)
    write_state(folder / "state.json", {"step": 4, "facts": prepare(theirs).facts})
    found = audited(config)
    assert "belongs to another run: model was" in found["checkpoints"]
    assert "manifest.json is missing" in found["run folder"] and len(found) == 2
    (folder / "state.json").write_text("{")
    assert re.search("state.json is no JSON.*has no earlier one", audited(config)["checkpoints"], re.DOTALL)


def test_changed_recipe_of_a_run(begun: Config) -> None:
    objective = begun.objective.model_copy(update={"beta": 0.7})
    found = audited(begun.model_copy(update={"objective": objective}))
    assert list(found) == ["run folder"] and "objective.beta: was 0.5, now 0.7" in found["run folder"]


def test_different_policy_and_reference(lab: Any) -> None:
    config = recipe(lab)
    train = prepare(config).train
    rows = [[-1.5 * len(r) for r in tree.responses] for tree in train.trees[:3]]
    assert f"{math.log(2):.6f} (ln 2" in preflight.identity(config, train, rows, rows)
    moved = [[v + 0.01 for v in row] for row in rows]
    with pytest.raises(ClusterError, match="policy and reference differ by"):
        preflight.identity(config, train, moved, rows)
    with pytest.raises(ClusterError, match="differ by nan"):
        preflight.identity(config, train, [[math.nan] * len(row) for row in rows], rows)


def test_cache_of_other_log_probs(lab: Any, tmp_path: Path) -> None:
    config = recipe(lab, f"output_dir={tmp_path}")
    train = prepare(config).train
    rows = [[-1.5 * len(r) for r in tree.responses] for tree in train.trees]
    assert "none yet" in preflight.reference_cache(config, train, rows[:4])
    write_cache(cache_path(config, train), rows)
    assert "4 records recomputed" in preflight.reference_cache(config, train, rows[:4])
    rows[2][0] += 1
    with pytest.raises(CheckpointError, match=r"holds log-prob .* where the reference now gives"):
        preflight.reference_cache(config, train, rows[:4])


# Token


def test_token_file(tmp_path: Path) -> None:
    def found(path: Path) -> Any:
        return judge.token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)})

    path = tmp_path / "token"
    with pytest.raises(Fault, match="cannot be read: No such file"):
        found(path)
    with pytest.raises(Fault, match="cannot be read: Is a directory"):
        found(tmp_path)
    path.touch(mode=0o600)
    with pytest.raises(Fault, match="is empty"):
        found(path)
    path.write_text("secret\n")
    assert found(path) == str(path)
    path.chmod(0o644)
    assert found(path).fix == f"chmod 600 {path}"
    if os.getuid():
        path.chmod(0)
        with pytest.raises(Fault, match="Permission denied"):
            found(path)
    assert isinstance(judge.token({"RAY_AUTH_MODE": "disabled"}), Warn)


def test_unreadable_token_stops_before_anything_connects(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(lab.folder / "gone"))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    checks = Checklist()
    full(recipe(lab), checks)
    assert list(red(checks)) == ["token"] and "cluster" in checks.named("skipped")


# Ports


def test_closed_and_swallowed_ports_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpeer.launcher.preflight.probe.CONNECT_S", 0.5)
    probe = Probe()
    open_port = ("127.0.0.1", probe.listen("127.0.0.1"))
    with socket.socket() as closed, socket.socket() as full_queue:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        full_queue.bind(("127.0.0.1", 0))
        full_queue.listen(0)
        waiting = [socket.socket() for _ in range(4)]  # fill its queue: further packets are dropped, as a firewall does
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(full_queue.getsockname())
        time.sleep(0.2)
        nobody, swallowed = closed.getsockname(), full_queue.getsockname()
        found = unreachable([open_port, nobody, swallowed])
        for client in waiting:
            client.close()
    assert found == {nobody: "Connection refused", swallowed: "timed out"}


def test_group_that_cannot_meet_says_so_early() -> None:
    """In a process of its own: rank 0 waits for a rank 1 that never comes."""
    program = (
        "from dpeer.training import world\n"
        "from dpeer.errors import ClusterError\n"
        "try:\n    world.start(0, 2, '127.0.0.1', 0, 3000, gpu=False, join_timeout_s=1)\n"
        "except ClusterError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert "rank 0 of 2 could not meet the others at 127.0.0.1" in done.stdout, done.stderr
    assert "within 1 s" in done.stdout and "GLOO_SOCKET_IFNAME" in done.stdout
