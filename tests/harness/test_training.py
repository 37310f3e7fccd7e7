"""Real trainings, Ray and DeepSpeed, on hosts of a real Slurm: what pre-emption and lost nodes leave in the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Training:
    """A job of slurm/train.sh on two hosts, one rank on each."""

    def __init__(
        self, lab: Any, programs: Path, toy: Path, name: str, *options: str, script: Path = ROOT / "slurm" / "train.sh"
    ) -> None:
        self.lab, self.toy, self.name = lab, toy, name
        environment = {
            "RECIPE": "recipe.yaml",
            "DPEER_HOME": str(ROOT),
            "DPEER_ENV": "/dev/null",
            "DPEER_LEASE_S": "24",  # a driver that was killed with its node is followed sooner
            "DPEER_LOSS_PATIENCE": "40",
            "PATH": f"{programs}:{lab.environment['PATH']}",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            # Dead nodes are noticed in about 15 s instead of a minute.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "5000",
            "RAY_health_check_failure_threshold": "3",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "20",  # a node that was cut off gives up
        }
        self.number = lab.submit(
            "--nodes=2", "--gpus-per-node=0", "--exclusive=user", *options, str(script),
            "--set", f"name={name}", environment=environment, cwd=toy,
        )  # fmt: skip

    @property
    def output(self) -> str:
        return str(self.lab.output(self.number))

    @property
    def ledger(self) -> list[dict[str, Any]]:
        path = self.toy / "runs" / self.name / "ledger.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def until_attempt(self, attempt: int, steps: int) -> None:
        """Until the job has been restarted that many times and has done `steps` steps more than before."""
        begun = f"attempt {attempt} "
        self.lab.until(lambda: begun in self.output, f"{begun}to begin:\n{self.output}", 150)
        before = len(self.ledger)
        self.lab.until(lambda: len(self.ledger) >= before + steps, f"{steps} steps:\n{self.output}", 200)

    def nodes(self) -> list[str]:
        job = self.lab.job(self.number)
        return str(self.lab.slurm("scontrol", "show", "hostnames", job["NodeList"])).split()

    def finish(self, limit_s: float = 300) -> dict[str, str]:
        job = self.lab.ended(self.number, limit_s)
        assert job["JobState"] == "COMPLETED", self.output
        return job


def assert_same_run(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert [a[k] for k in ("step", "records", "tokens")] == [b[k] for k in ("step", "records", "tokens")]
        assert a["golden_nll"] == pytest.approx(b["golden_nll"], abs=1e-4)
        for name, values in b["dimensions"].items():
            assert a["dimensions"][name]["edges"] == values["edges"]
            if values["edges"]:
                assert a["dimensions"][name]["loss"] == pytest.approx(values["loss"], abs=1e-4)


def test_disturbed_run_equals_an_undisturbed_one(lab: Any, programs: Path, toy: Path) -> None:
    """Pre-empted, a node crashes, pre-empted again, a node's network is cut: nothing of it is in the ledger."""
    plain = Training(lab, programs, toy, "plain")
    assert plain.finish()["Restarts"] == "0" and len(plain.nodes()) == 2

    run = Training(lab, programs, toy, "disturbed")
    run.until_attempt(0, 3)
    lab.slurm("scancel", "--signal=USR1", "--batch", run.number)
    run.until_attempt(1, 3)
    lab.kill_node(run.nodes()[1])
    run.until_attempt(2, 3)
    lab.heal()
    lab.slurm("scancel", "--signal=USR1", "--batch", run.number)
    run.until_attempt(3, 3)
    lab.cut(run.nodes()[1])
    assert run.finish()["Restarts"] == "4"
    assert "attempt 4 (2 after a loss)" in run.output
    assert_same_run(run.ledger, plain.ledger)


SWEEP = """#!/bin/bash
. "$DPEER_HOME/slurm/lib.sh"
tolerances=(0.15 0.25 0.4)
tolerance=${tolerances[SLURM_ARRAY_TASK_ID]}
run_on_ray dpeer train recipe.yaml --auto-resume --set name=tolerance-$tolerance \\
  --set objective.constraint.tolerance=$tolerance --set cluster.policy_workers=1 --set training.steps=12
"""


def test_array_over_three_tolerances(lab: Any, programs: Path, toy: Path) -> None:
    """Three tasks of one array side by side on one node: their Ray clusters keep apart."""
    (toy / "sweep.sh").write_text(SWEEP)
    array = Training(lab, programs, toy, "array", "--nodes=1", "--array=0-2", "--nodelist=n1", script=toy / "sweep.sh")
    tasks = [f"{array.number}_{i}" for i in range(3)]
    for task in tasks:
        assert lab.ended(task, 400)["JobState"] == "COMPLETED", lab.output(task)
    ledgers = {}
    for tolerance in ("0.15", "0.25", "0.4"):
        folder = toy / "runs" / f"tolerance-{tolerance}"
        ledgers[tolerance] = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
        assert (folder / "certificate.json").exists() and len(ledgers[tolerance]) == 12
    batches = [[entry["tokens"] for entry in ledger] for ledger in ledgers.values()]
    assert batches[0] == batches[1] == batches[2]  # paired: only the tolerance differs
    slack = [ledger[0]["constraints"]["A"] for ledger in ledgers.values()]
    assert len({json.dumps(s) for s in slack}) == 3
