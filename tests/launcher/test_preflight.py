"""Planted faults, each caught by its name. Where one machine can have the fault for real, it has it for real."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dpeer.config import Config
from dpeer.config_io import load_config
from dpeer.errors import CheckpointError, ClusterError
from dpeer.training import preflight
from dpeer.training.prepare import prepare
from dpeer.training.reference import cache_path, write_cache
from dpeer.training.run_dir import RunDir, write_json
from launcher.cli import app
from launcher.cluster import connect
from launcher.preflight import judge
from launcher.preflight.checklist import Checklist, Fault, Warn
from launcher.preflight.full import data, full
from launcher.preflight.probe import Probe, unreachable
from launcher.preflight.quick import opening, quick

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
    opening(config)
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
            opening(config)
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


def test_faulty_recipe_is_a_line_of_its_own(lab: Any) -> None:
    result = CliRunner().invoke(app, ["preflight", str(lab.folder / "recipe.yaml"), "--set", "seed=x", "--json"])
    answer = json.loads(result.stdout)
    assert result.exit_code == 1 and not answer["ok"]
    assert [(c["name"], c["status"]) for c in answer["checks"]] == [("config", "failed")]
    assert "seed: 'x' given" in answer["checks"][0]["found"]


# Data, template, reference, checkpoints


@pytest.fixture
def begun(lab: Any, tmp_path: Path) -> Config:
    """A run that has begun and saved, with model files of its own that a test may change."""
    model = shutil.copytree(lab.folder / "model", tmp_path / "model")
    reference = shutil.copytree(lab.folder / "model", tmp_path / "reference")
    config = recipe(lab, f"output_dir={tmp_path}", f"model.path={model}", f"model.reference_path={reference}")
    files, facts = RunDir(config.run_dir), prepare(config).facts
    files.begin(config, facts)
    write_json(files.checkpoint(4) / "state.json", {"step": 4, "facts": facts})
    assert audited(config) == {}
    return config


def test_mismatched_chat_template(begun: Config) -> None:
    path = Path(begun.model.path) / "chat_template.jinja"
    path.write_text(path.read_text().replace("'assistant\n'", "'assistant \n'") + "{# another #}")
    found = audited(begun)
    assert "began with chat template" in found["chat template"] and "Restore" in found["chat template"]


def test_policy_and_reference_with_different_templates(lab: Any, tmp_path: Path) -> None:
    theirs = shutil.copytree(lab.folder / "model", tmp_path / "reference")
    (theirs / "chat_template.jinja").write_text((theirs / "chat_template.jinja").read_text() + " ")
    found = audited(recipe(lab, f"model.reference_path={theirs}"))
    assert list(found) == ["chat template"] and "another chat template" in found["chat template"]


def test_missing_chat_template(lab: Any, tmp_path: Path) -> None:
    model = shutil.copytree(lab.folder / "model", tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    found = audited(recipe(lab, f"model.path={model}"))
    assert list(found) == ["token boundaries"] and "has no chat template" in found["token boundaries"]


def test_changed_reference(begun: Config) -> None:
    from dpeer.model.toy import tiny_model

    reference = Path(str(begun.model.reference_path))
    other = tiny_model(reference.with_name("other"), "qwen3", 2, vocab=400)
    shutil.copy(other / "model.safetensors", reference / "model.safetensors")
    found = audited(begun)
    assert "began with reference" in found["reference weights"] and "other weights" in found["reference weights"]
    assert "belongs to another run: reference" in found["checkpoints"]


def test_stale_checkpoint_of_another_model(lab: Any, tmp_path: Path) -> None:
    """Copied into the folder of a new run, so that no manifest could tell."""
    from dpeer.model.toy import tiny_model

    other = tiny_model(tmp_path / "other", "qwen3", 2, vocab=400)
    shutil.copytree(lab.folder / "model", tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copy(other / "model.safetensors", tmp_path / "model" / "model.safetensors")
    config = recipe(lab, f"output_dir={tmp_path}")
    theirs = recipe(lab, f"model.path={tmp_path / 'model'}")
    folder = RunDir(config.run_dir).checkpoint(4)
    write_json(folder / "state.json", {"step": 4, "facts": prepare(theirs).facts})
    found = audited(config)
    assert list(found) == ["checkpoints"] and "belongs to another run: model was" in found["checkpoints"]
    (folder / "state.json").write_text("{")
    assert "state.json cannot be read" in audited(config)["checkpoints"]


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
    monkeypatch.setattr("launcher.preflight.probe.CONNECT_S", 0.5)
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


# Two nodes: Ray for real, in namespaces of their own, so that the second one can be at fault

CLUSTER = """
set -eu
ip link set lo up
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={folder}/token RAY_DISABLE_IMPORT_WARNING=1
options="--temp-dir={sockets} --num-cpus=4 --object-store-memory=100000000 --disable-usage-stats --block"
ports="--node-manager-port=20001 --object-manager-port=20002 --min-worker-port=20100 --max-worker-port=20199"
hostname n1
ray start --head --port=20000 --node-ip-address=127.0.0.1 --include-dashboard=false --num-gpus=1 \
    --min-worker-port=20200 --max-worker-port=20299 $options >{folder}/head.log 2>&1 &
python - <<'EOF'
import socket, time
for _ in range(300):
    if socket.socket().connect_ex(("127.0.0.1", 20000)) == 0:
        break
    time.sleep(0.2)
EOF
unshare --mount --uts bash -c "set -eu; hostname n2; {node2}
    exec ray start --address=127.0.0.1:20000 --node-ip-address=127.0.0.2 --num-gpus=1 $ports $options" \
    >{folder}/node2.log 2>&1 &
python - <<'EOF'
import ray, time
for _ in range(3):
    try:
        ray.init(address="127.0.0.1:20000", log_to_driver=False)
        break
    except ConnectionError:
        time.sleep(2)
for _ in range(300):
    if sum(n["Alive"] for n in ray.nodes()) == 2:
        break
    time.sleep(0.2)
EOF
{network}
cd {folder}
export RAY_ADDRESS=127.0.0.1:20000
code=0
{command} >{folder}/answer.json 2>{folder}/driver.log || code=$?
exit $code
"""
LATER = """
import time
clock = time.time
time.time = lambda: clock() + 120
"""


def on_two_nodes(lab: Any, tmp_path: Path, command: str, node2: str = "", network: str = "") -> tuple[int, str]:
    """Run a command beside a cluster of two nodes that ends with it; `node2` and `network` plant faults."""
    if os.getuid() or subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("needs root and namespaces")
    (tmp_path / "token").write_text("s" * 64)
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "runs").mkdir()
    sockets = tempfile.mkdtemp(prefix="pf-", dir="/tmp")
    script = CLUSTER.format(
        folder=tmp_path, sockets=sockets, node2=node2.replace("\n", "; "), network=network, command=command
    )
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"
    }  # fmt: skip
    namespaces = "--net --mount --uts --pid --fork --kill-child --mount-proc"
    try:
        done = subprocess.run(
            ["unshare", *namespaces.split(), "bash", "-c", script], env=environment, capture_output=True, text=True,
            timeout=270,
        )  # fmt: skip
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
    logs = "".join(
        (tmp_path / f"{n}.log").read_text() for n in ("head", "node2", "driver") if (tmp_path / f"{n}.log").exists()
    )
    assert (tmp_path / "answer.json").exists(), done.stderr + logs
    return done.returncode, (tmp_path / "answer.json").read_text() or done.stderr + logs


@pytest.mark.slow
def test_sound_cluster_and_models_are_green(lab: Any, tmp_path: Path) -> None:
    """The whole list, models and checkpoint included, with workers on both nodes."""
    command = f"python -m launcher.cli preflight {lab.folder}/recipe.yaml --json --set output_dir={tmp_path}/runs"
    code, answer = on_two_nodes(
        lab, tmp_path, f"{command} --set cluster.nodes=2 --set cluster.cpus_per_worker=3 --set cluster.reference=cache"
    )
    found = {c["name"]: c for c in json.loads(answer)["checks"]}
    assert {c["status"] for c in found.values()} == {"ok"} and code == 0, answer
    assert "2 nodes: n1, n2" in found["nodes"]["found"] and "2 ranks joined" in found["process groups"]["found"]
    assert "0.693147 (ln 2 = 0.693147)" in found["step-0 identity"]["found"]
    for name in ("network", "clocks", "shared folder", "tree attention", "save and load", "token"):
        assert name in found
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.slow
def test_faults_of_a_second_node_are_all_named(lab: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for room in ("dpeer", "launcher", "ds_configs"):
        shutil.copytree(ROOT / room, other / room, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "dpeer" / "objective" / "dual.py").open("a") as stream:
        stream.write("# another revision\n")
    (other / "sitecustomize.py").write_text(LATER)
    (other / "transformers-4.1.0.dist-info").mkdir()
    (other / "transformers-4.1.0.dist-info" / "METADATA").write_text("Name: transformers\nVersion: 4.1.0\n")
    sets = f"output_dir={tmp_path}/runs cluster.nodes=3 cluster.gpus_per_worker=0.5".split()
    code, answer = on_two_nodes(
        lab,
        tmp_path,
        f"python -m launcher.cli preflight {lab.folder}/recipe.yaml --quick --json "
        + " ".join(f"--set {s}" for s in sets),
        node2=f"export PYTHONPATH={other}\nmount -t tmpfs dpeer-test {tmp_path}/runs",
        # What a firewall does that opens Ray's ports and no others.
        network="ip rule add pref 100 lookup local; ip rule del pref 0\n"
        "ip rule add pref 1 to 127.0.0.2 ipproto tcp sport 30000-60999 dport 30000-60999 prohibit",
    )
    assert code == 1, answer
    found = {c["name"]: c for c in json.loads(answer)["checks"]}
    expected = {
        "nodes": "2 nodes: n1, n2; cluster.nodes wants 3",
        "GPUs": "n1: Ray has 1, the driver shows 0, n2: Ray has 1, the driver shows 0",
        "packages": "transformers 4.1.0 on n2 (driver: ",
        "code": "dpeer's code on n2 is not the driver's",
        "clocks": "n2 is +120.",
        "network": "no connection from n1 to n2 (",
        "shared folder": "n2 does not see what n1",
    }
    for name, text in expected.items():
        assert found[name]["status"] == "failed" and text in found[name]["found"] and found[name]["fix"], found[name]
    assert {name for name, c in found.items() if c["status"] == "failed"} == set(expected)
