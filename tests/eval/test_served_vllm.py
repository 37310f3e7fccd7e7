"""vLLM's own OpenAI-compatible server on loopback rates as the engine in this process does, though it is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from dpeer.errors import ClusterError
from dpeer.eval import judge as judging
from dpeer.eval.backends.openai import endpoint as openai_backend
from dpeer.eval.config import EvalConfig
from dpeer.eval.judge import judge
from dpeer.eval.plan import plan
from dpeer.eval.questions.readout import read_logprobs
from dpeer.eval.questions.rubric import load_rubric
from dpeer.eval.store.parts import read_table
from tests.eval.evaluations import evaluation, no_ray

ROOT = Path(__file__).parents[2]
VOCABULARY = 512
IN_PROCESS = """
import json, os, sys
from dataclasses import replace
from dpeer.eval.backends.types import Job
from dpeer.eval.backends.vllm.engine import Engine, environment
from dpeer.eval.config import EvalConfig
from dpeer.eval.judge import calls, work
from dpeer.eval.plan import plan

cfg = EvalConfig.model_validate_json(open(sys.argv[1]).read())
planned, served = plan(cfg, check_design=False), cfg.judges[0]
job = Job(served, cfg.engine, work(cfg, planned, served).method, "cpu")
os.environ |= environment(job)
logprobs = {a.id: a.logprobs for a in Engine(job).answer(list(calls(planned, planned.todo, "logprob")))}
rows = planned.rows[["rating_id", "response_id", "dimension", "criterion", "order"]].values.tolist()
json.dump([[*key, logprobs[i]] for i, *key in rows], open(sys.argv[2], "w"))
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a process in a group of its own; its output goes to NAME.log."""
    started = []
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    quiet |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": str(ROOT)}

    def start(name: str, *arguments: object) -> subprocess.Popen[bytes]:
        log = (tmp_path / f"{name}.log").open("ab")
        command = [sys.executable, *map(str, arguments)]
        started.append(
            subprocess.Popen(command, env=os.environ | quiet, stdout=log, stderr=log, start_new_session=True)
        )
        return started[-1]

    yield start
    for one in started:
        end(one)


def end(process: subprocess.Popen[bytes]) -> None:
    """As a machine that goes away: the whole group at once."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, limit_s: float = 600) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(f"{url}/models", timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_server_that_is_killed_rates_as_the_engine_here_does(
    tmp_path: Path, models: Path, process: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = evaluation(tmp_path, models)
    (tmp_path / "here.json").write_text(here.model_copy(update={"judges": here.judges[:1]}).model_dump_json())
    engine = process("engine", "-c", IN_PROCESS, tmp_path / "here.json", tmp_path / "found.json")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    command = ["-m", "vllm.entrypoints.openai.api_server", "--model", models / "a", "--served-model-name", "judge"]
    command += ["--host", "127.0.0.1", "--port", port, "--dtype", "float32", "--max-model-len", 512]
    command += ["--max-num-seqs", 64, "--max-logprobs", VOCABULARY, "--enforce-eager", "--block-size", 32]
    command += ["--distributed-executor-backend", "uni"]  # a process less to start
    server = process("server", *command)

    served = {"path": "judge", "backend": "openai", "base_url": url, "family": "served", "api_key_env": "ABSENT"}
    served |= {"request": {"top_logprobs": VOCABULARY}}
    judges = [{"name": n, "revision": n, **served} for n in ("s1", "s2")]
    changed = {"name": "served", "judges": judges}
    cfg = EvalConfig.model_validate(here.model_dump(mode="json") | changed)
    monkeypatch.setattr(openai_backend, "BATCH", 8)
    monkeypatch.setattr(openai_backend, "RETRIES", 1)
    write, written = judging.write_part, []

    def killing(folder: Path, rows: Any) -> Any:
        written.append(write(folder, rows))
        if len(written) == 2:
            end(server)

    quiet = Console(file=StringIO())
    wait_for(url, server, tmp_path / "server.log")
    with monkeypatch.context() as patch, pytest.raises(ClusterError, match="cannot be reached"):
        patch.setattr(judging, "write_part", killing)
        judge(cfg, no_ray, console=quiet)
    before = read_table(cfg.folder / "ratings")
    assert 16 <= len(before) < 80
    server = process("server", *command)
    wait_for(url, server, tmp_path / "server.log")
    table = pd.read_parquet(judge(cfg, no_ray, console=quiet))
    assert sorted(table["rating_id"]) == sorted(plan(cfg).rows["rating_id"]) and len(table) == 80
    assert set(before["rating_id"]) < set(table["rating_id"]) and set(table["status"]) == {"ok"}
    assert engine.wait(600) == 0, (tmp_path / "engine.log").read_text()[-3000:]
    scale = load_rubric("toyworld").scale
    expected = {
        tuple(key): read_logprobs(found, scale, 0.0)
        for *key, found in json.loads((tmp_path / "found.json").read_text())
    }
    assert len(expected) == 40
    for row in table.to_dict("records"):
        reading = expected[tuple(row[c] for c in ("response_id", "dimension", "criterion", "order"))]
        assert row["score"] == reading.score and row["expected"] == pytest.approx(reading.expected, abs=1e-12)
        assert row["mass"] == pytest.approx(reading.mass, abs=1e-12)
