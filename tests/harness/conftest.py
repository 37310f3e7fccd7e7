"""One Slurm for all tests of the folder, and a check after each that no process of its jobs is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.harness.slurm_lab import SlurmLab, can_make_hosts, missing

ROOT = Path(__file__).parents[2]


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
    left = cluster.strays()
    deadline = time.monotonic() + 60
    while (left := cluster.strays()) and time.monotonic() < deadline:
        time.sleep(0.2)
    if left:
        cluster.end_strays()
    assert left == []


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PATH with `dpeer` and `ray` of this checkout and environment."""
    folder = tmp_path_factory.mktemp("bin")
    for name, module in (("dpeer", "launcher.cli"), ("ray", "ray.scripts.scripts")):
        (folder / name).write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m {module} "$@"\n')
        (folder / name).chmod(0o755)
    return folder
