"""What job scripts do with a driver's exit code and with signals, on a real Slurm, with a driver that only counts."""

from __future__ import annotations

import socket
import stat
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
STUBS = Path(__file__).parent / "stubs"


class Job:
    """A job of two nodes with the counting driver; its files are in `folder`."""

    def __init__(
        self,
        lab: Any,
        folder: Path,
        *options: str,
        script: str = "train.sh",
        given: tuple[str, ...] = (),
        **environment: str,
    ) -> None:
        self.lab, self.folder = lab, folder
        settings = {
            "RECIPE": "recipe.yaml",
            "STUB": str(folder),
            "DPEER_HOME": str(ROOT),
            "DPEER_ENV": "/dev/null",
            "DPEER_LOSS_PATIENCE": "5",
            "PATH": f"{STUBS}:{lab.environment['PATH']}",
        }
        self.number = lab.submit(
            "--nodes=2", "--gpus-per-node=2", *options, f"{ROOT}/slurm/{script}", *given,
            environment=settings | environment, cwd=folder,
        )  # fmt: skip

    @property
    def steps(self) -> list[int]:
        ledger = self.folder / "ledger"
        return [int(line) for line in ledger.read_text().split()] if ledger.exists() else []

    @property
    def calls(self) -> list[str]:
        calls = self.folder / "calls"
        return calls.read_text().splitlines() if calls.exists() else []

    @property
    def output(self) -> str:
        return str(self.lab.output(self.number))

    @property
    def nodes(self) -> list[str]:
        return str(self.lab.slurm("scontrol", "show", "hostnames", self.lab.job(self.number)["NodeList"])).split()

    @property
    def restarts(self) -> int:
        return int(self.lab.job(self.number)["Restarts"])

    def until_step(self, step: int) -> None:
        self.lab.until(lambda: len(self.steps) >= step, f"step {step}")

    def send(self, name: str) -> None:
        self.lab.slurm("scancel", f"--signal={name}", "--batch", self.number)

    def ended(self, limit_s: float = 120) -> tuple[str, str, int, str]:
        """State, exit code, restarts and last line, once the job is over for good."""
        job = self.lab.ended(self.number, limit_s)
        return job["JobState"], job["ExitCode"], int(job["Restarts"]), self.output.splitlines()[-1].partition("] ")[2]


DONE = "final, exit code 0: done"


def test_a_job_that_succeeds(lab: Any, tmp_path: Path) -> None:
    job = Job(lab, tmp_path)
    assert job.ended() == ("COMPLETED", "0:0", 0, DONE), job.output
    assert job.steps == list(range(1, 11)) and job.calls == ["train recipe.yaml --auto-resume"]
    logs = tmp_path / "logs" / job.number / "attempt-0"
    token = logs / "private" / "token"
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and len(token.read_text()) == 64
    hosts = ("n1", "n2") if lab.hosts else (socket.gethostname().partition(".")[0],)
    assert {path.name for path in logs.glob("ray-*.log")} == {f"ray-{host}.log" for host in hosts}
    head, worker = sorted((tmp_path / "ray").read_text().splitlines(), key=lambda line: "--head" not in line)
    port = 20000 + int(job.number) % 500 * 10
    address = head.partition("--node-ip-address=")[2].partition(" ")[0]
    assert head.startswith(f"n1 start --head --port={port} --include-dashboard=false") or not lab.hosts
    assert f"start --address={address}:{port} " in worker
    assert all("--block" in line and "--num-gpus=8" in line for line in (head, worker))
    assert not list(Path("/tmp").glob(f"dpeer-{job.number}-*")) or not lab.hosts


def test_a_folder_that_a_node_refuses_is_final(lab: Any, tmp_path: Path) -> None:
    """Waiting for the nodes, and another attempt, would be in vain."""
    job = Job(lab, tmp_path, DPEER_TMP="/dev/null", DPEER_START_TIMEOUT="500")
    state, code, restarts, last = job.ended(90)
    assert (state, code, restarts) == ("FAILED", "73:0", 0), last
    assert "/dev/null/dpeer-" in last and "set DPEER_TMP" in last


@pytest.mark.parametrize(
    ("script", "given", "call"),
    [
        ("run.sh", ("preflight", "my.yaml", "--set", "name=a b"), "preflight my.yaml --set name=a b"),
        ("judge_farm.sh", ("generate",), "generate recipe.yaml"),
        ("judge_farm.sh", (), "judge recipe.yaml"),
    ],
)
def test_other_scripts_run_their_command(
    lab: Any, tmp_path: Path, script: str, given: tuple[str, ...], call: str
) -> None:
    job = Job(lab, tmp_path, script=script, given=given, STUB_STEPS="1")
    assert job.ended() == ("COMPLETED", "0:0", 0, DONE), job.output
    assert job.calls == [call]


def test_pre_emption_and_resume(lab: Any, tmp_path: Path) -> None:
    job = Job(lab, tmp_path, STUB_SAVE_S="1")
    job.until_step(3)
    job.send("USR1")
    lab.until(lambda: (tmp_path / "writing").exists(), "the checkpoint to begin")
    job.send("USR1")  # again, while it is written
    lab.until(lambda: len(job.calls) == 2, "the second attempt", 60)
    assert job.ended() == ("COMPLETED", "0:0", 1, DONE), job.output
    assert job.steps == list(range(1, 11))
    assert (tmp_path / "place").stat().st_size > 1_000_000
    assert "USR1 received" in job.output and "pre-empted" in job.output


def test_another_signal_for_pre_emption(lab: Any, tmp_path: Path) -> None:
    job = Job(lab, tmp_path, "--signal=B:USR2@600", DPEER_PREEMPT_SIGNAL="USR2")
    job.until_step(3)
    job.send("USR2")
    assert job.ended() == ("COMPLETED", "0:0", 1, DONE), job.output
    assert job.steps == list(range(1, 11))


def test_sigterm_saves_and_is_final(lab: Any, tmp_path: Path) -> None:
    job = Job(lab, tmp_path)
    job.until_step(3)
    job.send("TERM")
    state, code, restarts, last = job.ended()
    assert (state, code, restarts) == ("FAILED", "143:0", 0) and last.startswith("final, exit code 143"), job.output
    assert (tmp_path / "place").exists()


def test_any_other_code_is_final_with_its_reason_on_the_last_line(lab: Any, tmp_path: Path) -> None:
    (tmp_path / "fault").write_text("3")
    job = Job(lab, tmp_path)
    reason = "final, exit code 3: dpeer ended with 3: error: the disk is full; use another one"
    assert job.ended() == ("FAILED", "3:0", 0, reason), job.output


def test_lost_nodes_are_survived_a_few_times(lab: Any, tmp_path: Path) -> None:
    (tmp_path / "fault").write_text("86")
    job = Job(lab, tmp_path, DPEER_MAX_LOSSES="1")
    state, code, restarts, last = job.ended(150)
    assert (state, code, restarts) == ("FAILED", "86:0", 1) and "lost a node 2 times" in last, job.output


@pytest.mark.parametrize("loss", ["ray-dies", "gone"])  # Ray on the first node; a node, and nobody says so
def test_a_driver_that_fails_while_something_is_lost_is_started_again(lab: Any, tmp_path: Path, loss: str) -> None:
    job = Job(lab, tmp_path)
    job.until_step(3)
    (tmp_path / loss).touch()
    state, code, restarts, last = job.ended()
    assert (state, code, restarts, last) == ("COMPLETED", "0:0", 1, DONE), job.output


def test_no_dpeer_in_the_job_is_final_at_once(lab: Any, tmp_path: Path) -> None:
    folders = lab.environment["PATH"].split(":")
    job = Job(lab, tmp_path, PATH=":".join(f for f in folders if not Path(f, "dpeer").exists()))
    state, code, restarts, last = job.ended()
    assert (state, code, restarts) == ("FAILED", "1:0", 0), job.output
    assert "no dpeer on PATH and no /dev/null; run make setup" in last


def test_nodes_that_crash_or_are_cut_off(lab: Any, tmp_path: Path) -> None:
    """Slurm restarts the job on whole nodes, also when the node that crashed was the one with the driver."""
    if not lab.hosts:
        pytest.skip("nodes that can be killed need root")
    job = Job(lab, tmp_path, STUB_STEPS="150")
    for attempt, harm in enumerate((lab.kill_node, lab.cut)):
        lab.until(lambda begun=attempt + 1: len(job.calls) == begun, f"attempt {attempt}", 90)
        harm(job.nodes[attempt])
        lab.until(lambda begun=attempt + 1: job.restarts == begun, "a restart", 90)
        lab.heal()
    assert job.ended() == ("COMPLETED", "0:0", 2, DONE), job.output


def test_ray_that_does_not_start_is_tried_again_a_few_times(lab: Any, tmp_path: Path) -> None:
    (tmp_path / "never").touch()
    job = Job(lab, tmp_path, DPEER_MAX_LOSSES="0")
    state, code, restarts, last = job.ended()
    assert (state, code, restarts) == ("FAILED", "86:0", 0) and "DPEER_MAX_LOSSES is 0" in last, job.output
    assert not (tmp_path / "calls").exists()
