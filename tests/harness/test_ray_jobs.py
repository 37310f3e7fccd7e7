"""`ray job submit` against a running cluster: authentication, loopback, logs, stop with a checkpoint, resubmission."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

STEPS = 40
"""So many that a run is not over before the command that stops it has begun."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class RayCluster:
    """A Ray cluster of this machine with a dashboard, on loopback, closed by a token."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.token = folder / "token"
        self.token.touch(mode=0o600)
        self.token.write_text("a" * 64)
        self.environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's way to stay on loopback
            "OMP_NUM_THREADS": "1",
        }
        self.environment.pop("RAY_ADDRESS", None)
        port, dashboard, agent, metrics = (_free_port() for _ in range(4))
        self.address, self.agent = f"http://127.0.0.1:{dashboard}", agent
        self.log = folder / "ray.log"
        self.temporary = Path(f"/tmp/dpeer-jobs-{os.getpid()}")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}",
                 "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
                 f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}",
                 f"--temp-dir={self.temporary}", "--num-cpus=2", "--object-store-memory=200000000",
                 "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"],
                env=self.environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.family: set[psutil.Process] = set()

    def look(self) -> set[psutil.Process]:
        self.family |= set(psutil.Process(self.process.pid).children(recursive=True))
        return self.family

    @staticmethod
    def listens(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def job(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ray", "job", arguments[0], f"--address={self.address}", *arguments[1:]],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self) -> None:
        self.look()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any], what: str, limit_s: float = 400) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s:g} s for {what}"
        time.sleep(0.1)


@pytest.fixture
def ray_cluster(tmp_path: Path, programs: Path) -> Iterator[RayCluster]:
    import shutil

    cluster = RayCluster(tmp_path, programs)
    yield cluster
    cluster.end()
    _, alive = psutil.wait_procs(cluster.family, timeout=60)
    for process in alive:
        process.kill()
    shutil.rmtree(cluster.temporary, ignore_errors=True)
    assert alive == []


def test_submit_stop_and_submit_again(ray_cluster: RayCluster, toy: Path, tmp_path: Path) -> None:
    until(lambda: "Ray runtime started" in ray_cluster.log.read_text(), "Ray to start")
    until(lambda: ray_cluster.listens(ray_cluster.agent), "the agent that takes jobs")
    strangers = ray_cluster.job("list", RAY_AUTH_TOKEN="b" * 64)
    said = strangers.communicate(timeout=120)[0]
    assert strangers.returncode != 0 and re.search("401|403|token|auth", said), said

    source = tmp_path / "source"  # what --working-dir uploads
    source.mkdir()
    (source / "recipe.yaml").write_text((toy / "recipe.yaml").read_text())
    ledger = toy / "runs" / "job" / "ledger.jsonl"
    patience = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}})

    def submit(number: str, *more: str) -> subprocess.Popen[str]:
        length = ("--set", f"training.steps={STEPS}")
        command = ("dpeer", "train", "recipe.yaml", "--set", "name=job", *length, "--auto-resume", *more)
        return ray_cluster.job(
            "submit",
            f"--submission-id={number}",
            f"--working-dir={source}",
            f"--runtime-env-json={patience}",
            "--",
            *command,
        )

    def steps() -> int:
        assert first.poll() is None, first.communicate()[0]
        return ledger.read_bytes().count(b"\n") if ledger.exists() else 0

    first = submit("first")
    until(lambda: steps() >= 3, "three steps")
    stop = ray_cluster.job("stop", "first")
    for process in ray_cluster.look():
        if not process.is_running() or process.name().startswith("ray::Worker"):  # torch's rendezvous is not Ray's
            continue
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip.removeprefix("::ffff:") == "127.0.0.1", (process.cmdline(), connection)
    assert stop.wait(180) == 0
    said = first.communicate(timeout=60)[0]
    done = ledger.read_bytes().count(b"\n")
    assert f"saved step {done} of {STEPS}" in said, said
    assert (toy / f"runs/job/checkpoints/step-{done:07d}/state.json").exists() and 3 <= done < STEPS

    again = submit("second")
    said = again.communicate(timeout=300)[0]
    assert again.returncode == 0 and f"job step {STEPS}/{STEPS}" in said, said
    assert [json.loads(line)["step"] for line in ledger.read_text().splitlines()] == list(range(1, STEPS + 1))

    lost = submit("third", "--set", "output_dir=runs")
    said = lost.communicate(timeout=120)[0]
    assert lost.returncode == 1 and "absolute" in said, said
