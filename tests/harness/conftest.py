"""One Slurm for all tests of the folder, and a check after each that no process of its jobs is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.slurm_lab import SlurmLab, can_make_hosts, missing

ROOT = Path(__file__).parents[2]
RECIPE = """
name: baseline
output_dir: {folder}/runs
model: {{path: {folder}/model, dtype: fp32, export_dtype: fp32}}
data: {{train: {folder}/world/train.jsonl, heldout: {folder}/world/test.jsonl, dual: 25%, max_tokens: 512}}
objective: {{beta: 0.5, golden_nll: 1.0, constraint: {{tolerance: 0.25}}}}
training: {{steps: 24, records_per_step: 8, tokens_per_pack: 1000, checkpoint_every: 4, optimizer: {{lr: 1.0e-3}}}}
cluster:
  {{policy_workers: 2, reference: colocated, deepspeed: cpu, reference_deepspeed: cpu, timeout_s: 120,
    placement_timeout_s: 120, cpus_per_worker: 0.6}}
"""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmLab]:
    if why := missing():
        pytest.skip(why)
    lab = SlurmLab(tmp_path_factory.mktemp("slurm") / "lab", hosts=can_make_hosts())
    yield lab
    lab.close()


@pytest.fixture
def lab(cluster: SlurmLab) -> Iterator[SlurmLab]:
    """The cluster, idle before and after the test; what a job leaves behind fails the test."""
    cluster.heal()
    yield cluster
    cluster.cancel_all()
    cluster.heal()  # a node that was cut off learns only now that its job is over
    deadline = time.monotonic() + 90
    while (left := cluster.strays()) and time.monotonic() < deadline:
        time.sleep(0.2)
    if left:
        cluster.end_strays()
    assert left == []


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PATH with `dpeer` and `ray` of this checkout and environment."""
    folder = tmp_path_factory.mktemp("bin")
    for name, module in (("dpeer", "dpeer.launcher.cli"), ("ray", "ray.scripts.scripts")):
        (folder / name).write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m {module} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a toy world, a tiny model and a recipe of two policy ranks, each as large as a node's share."""
    from dpeer.toyworld import world as toyworld
    from dpeer.toyworld.model import tiny_model

    folder = tmp_path_factory.mktemp("toy")
    world = toyworld.write_world(folder / "world", 3, n_train=60, n_heldout=20, n_prompts=2, n_pretrain=5)
    tiny_model(folder / "model", "qwen3", 1, vocab=400, texts=[r.responses[0].text for r in world.train.records])
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    return folder
