"""`dpeer serve` with a model that runs here: vLLM answers beside an endpoint, votes become a fit, nothing stays."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from dpeer.launcher.cli import app
from tests.eval.conftest import models as toy_models
from tests.launcher.chat.streaming import KEY, endpoint

models = toy_models
ROOT = Path(__file__).parents[3]


@pytest.fixture
def begun() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.terminate()
        process.wait(60)


def begin(begun: list[subprocess.Popen[str]], folder: Path, *arguments: object) -> tuple[subprocess.Popen[str], str]:
    """The command, and the address that it prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": KEY, "DPEER_DEVICE": "cpu"}
    log = (folder / "serve.log").open("a")
    before = (folder / "serve.log").read_text().count("Only browsers")
    command = [sys.executable, "-m", "dpeer.launcher.cli", "serve", *map(str, arguments)]
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True, cwd=folder)
    begun.append(process)
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        said = (folder / "serve.log").read_text()
        assert process.poll() is None, said
        found = re.findall(r"http://127\.0\.0\.1:\d+/[\w-]{20,}/", said)
        if len(found) > before:
            return process, found[-1]
        time.sleep(0.2)
    raise AssertionError((folder / "serve.log").read_text())


def gone(processes: list[psutil.Process], limit_s: float = 30) -> bool:
    return not psutil.wait_procs(processes, timeout=limit_s)[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_model_here_answers_beside_an_endpoint_and_votes_become_a_fit(
    models: Path, tmp_path: Path, begun: list[subprocess.Popen[str]]
) -> None:
    with endpoint() as there:
        names = (models / "a", f"served=peer@{there.url}")
        process, address = begin(
            begun, tmp_path, *names, "--max-tokens", 48, "--max-length", 256, "--voter", "ann", "--votes", "v.csv"
        )
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        with httpx.Client(base_url=address, timeout=300) as client:
            for k in range(20):
                found = client.post(
                    "ask", json={"text": f"Question {k % 10}?", "models": ["a", "served"], "blind": True}
                ).json()
                for column in (0, 1):
                    with client.stream("POST", "answer", json={"talk": found["talk"], "column": column}) as came:
                        events = [json.loads(line) for line in came.iter_lines()]
                    assert events[-1].get("end") in ("stop", "length"), events
                told = client.post("export", json={"talk": found["talk"]}).json()["columns"]
                peer = next(c for c in (0, 1) if told[c]["messages"][-1]["content"].startswith("peer answers"))
                winner = "tie" if k % 5 == 4 else peer if k % 5 else 1 - peer
                kept = client.post(
                    "vote", json={"talk": found["talk"], "dimension": "overall", "winner": winner}
                ).json()
                assert kept["names"][peer] == "served"
        port_of_vllm = next(c for child in children for c in child.net_connections() if c.status == "LISTEN").laddr.port
        assert httpx.get(f"http://127.0.0.1:{port_of_vllm}/v1/models", timeout=60).status_code == 401
        process.kill()
        process.wait()
        assert gone(children)
        process, address = begin(begun, tmp_path, f"peer@{there.url}", "--voter", "ann", "--votes", "v.csv")
        assert httpx.get(address, timeout=120).status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    fit = ["irt", "fit", str(tmp_path / "v.csv"), "--human", "ann", "-o", str(tmp_path / "fit"), "--approx"]
    done = CliRunner().invoke(app, [*fit, "--warmup", "200", "--draws", "100"])
    assert done.exit_code == 0, done.output
    ability = json.loads((tmp_path / "fit" / "tables" / "ability.json").read_text())
    assert {row["model"] for row in ability} == {"a", "served"}
