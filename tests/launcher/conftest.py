"""A place to run the real command line in: toy data, a tiny model, and a hold on every process that a run starts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
RECIPE = """
name: baseline
output_dir: {folder}/runs
model: {{path: {folder}/model, dtype: fp32, export_dtype: fp32}}
data: {{train: {folder}/world/train.jsonl, heldout: {folder}/world/test.jsonl, dual: 25%, max_tokens: 512}}
objective: {{beta: 0.5, golden_nll: 1.0, constraint: {{tolerance: 0.25}}}}
training:
  {{steps: 24, records_per_step: 8, tokens_per_pack: 2500, checkpoint_every: 4, optimizer: {{lr: 1.0e-3}},
    keep: best, stop_when: certified, sample_every: 12, sample_prompts: 2}}
cluster:
  {{policy_workers: 2, reference: workers, reference_workers: 1, deepspeed: {folder}/ds.json, reference_deepspeed: cpu,
    timeout_s: 60, placement_timeout_s: 60, cpus_per_worker: 0.4, preflight: false}}
"""


class Launched:
    """`python -m` with these arguments in its own process group, as a shell starts it."""

    def __init__(self, arguments: list[str], folder: Path, log: Path) -> None:
        self.log, self.began = log, time.monotonic()
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=folder,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.family: set[psutil.Process] = set()
        self.workers: list[psutil.Process] = []

    @property
    def output(self) -> str:
        return self.log.read_text()

    def look(self) -> None:
        """Remember every process that the command has started, Ray's workers in the order of their birth."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        self.family |= set(children)
        for child in sorted(children, key=lambda c: c.create_time()):
            # What a worker starts bears the worker's own title until its exec.
            if child not in self.workers and _is_worker(child) and not _is_worker(_parent(child)):
                self.workers.append(child)

    def ray_folder(self) -> Path:
        """Where the private Ray cluster of this run keeps its sockets."""
        commands = " ".join(map(_command, self.family))
        return Path(next(word for word in re.findall(r"/tmp/dpeer-ray-[^/\s]+", commands)))

    def until(self, condition: Callable[[], bool], limit_s: float = 150) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)
        self.look()

    def wait(self, limit_s: float = 400) -> int:
        deadline = time.monotonic() + limit_s
        while self.process.poll() is None and time.monotonic() < deadline:
            self.look()
            with suppress(subprocess.TimeoutExpired):
                # A look goes through all processes of the machine; daemons that leave the family do so early.
                self.process.wait(0.2 if time.monotonic() - self.began < 3 else 1)
        assert self.process.poll() is not None, f"still running after {limit_s:g} s:\n{self.output}"
        return self.process.returncode

    def survivors(self, limit_s: float = 20) -> list[str]:
        """Commands of processes that this run started and that still live after `limit_s` seconds."""
        _, alive = psutil.wait_procs([p for p in self.family if _command(p)], timeout=limit_s)
        return [c for c in map(_command, alive) if c]

    def end(self) -> None:
        self.look()
        if self.process.poll() is None:
            self.process.kill()
        for process in self.family:
            with suppress(psutil.Error, ProcessLookupError):  # it may end by itself meanwhile
                process.kill()
        self.process.wait()


class Lab:
    """Toy data, a tiny model and a recipe in `folder`; starts `dpeer` commands there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.launched = folder, list[Launched]()

    def start(self, *arguments: str) -> Launched:
        """A `dpeer` command."""
        return self.launch("dpeer.launcher.cli", *arguments)

    def torchrun(self, ranks: int, name: str, *changes: str, module: str = "dpeer.launcher.torchrun") -> Launched:
        sets = [part for change in (f"name={name}", *changes) for part in ("--set", change)]
        options = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--nproc-per-node", str(ranks)]
        return self.launch("torch.distributed.run", *options, "-m", module, "recipe.yaml", *sets)

    def launch(self, *arguments: str) -> Launched:
        launched = Launched(list(arguments), self.folder, self.folder / f"{len(self.launched)}.log")
        self.launched.append(launched)
        return launched

    def train(self, name: str, *changes: str, resume: bool = False) -> Launched:
        sets = [part for change in (f"name={name}", *changes) for part in ("--set", change)]
        return self.start("train", "recipe.yaml", *sets, *(["--resume"] if resume else []))

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def steps(self, name: str) -> int:
        ledger = self.run(name) / "ledger.jsonl"
        return ledger.read_bytes().count(b"\n") if ledger.exists() else 0

    def ledger(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run(name) / "ledger.jsonl").read_text().splitlines()]


def build_lab(folder: Path, n_train: int = 60, n_heldout: int = 20) -> Lab:
    from dpeer.toyworld import world as toyworld
    from dpeer.toyworld.model import tiny_model

    world = toyworld.write_world(folder / "world", 3, n_train=n_train, n_heldout=n_heldout, n_prompts=2, n_pretrain=5)
    tiny_model(folder / "model", "qwen3", 1, vocab=400, texts=[r.responses[0].text for r in world.train.records])
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    settings = json.loads((ROOT / "ds_configs" / "cpu.json").read_text())
    settings["zero_optimization"]["sub_group_size"] = 20_000  # several sub-groups, as models of billions have
    (folder / "ds.json").write_text(json.dumps(settings))
    return Lab(folder)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = build_lab(tmp_path_factory.mktemp("lab"))
    yield lab
    for launched in lab.launched:
        launched.end()


@pytest.fixture(scope="session")
def baseline(lab: Lab) -> Path:
    """An uninterrupted run: what every disturbed one must equal."""
    run = lab.train("baseline", "cluster.preflight=true")
    assert run.wait() == 0, run.output
    assert run.survivors() == []
    return lab.run("baseline")


@pytest.fixture(scope="session")
def colocated(lab: Lab) -> Launched:
    """A run, `colocated`, whose policy workers are their own reference: what torchrun must equal."""
    run = lab.train("colocated", "cluster.reference=colocated")
    assert run.wait() == 0, run.output
    assert run.survivors() == []
    return run


def _parent(process: psutil.Process) -> psutil.Process | None:
    try:
        return process.parent()
    except psutil.Error:
        return None


def _is_worker(process: psutil.Process | None) -> bool:
    return process is not None and _command(process).startswith("ray::Worker")


def _command(process: psutil.Process) -> str:
    """Command line, empty for a process that has ended."""
    try:
        return "" if process.status() == psutil.STATUS_ZOMBIE else " ".join(process.cmdline())
    except psutil.Error:
        return ""
