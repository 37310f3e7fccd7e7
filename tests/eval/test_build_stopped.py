"""A build that is killed, stopped and started again comes to the files of one that was left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dpeer.eval.build.build import build
from dpeer.eval.build.files import write
from dpeer.eval.build.spec import BuildSpec
from dpeer.eval.build.texts import TEXTS
from dpeer.eval.store.parts import done_ids, read_table
from tests.eval.evaluations import no_ray
from tests.eval.toy_writers import Toy, digest, values, write_spec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def started(path: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dpeer.launcher.cli", "build", str(path)]
    return subprocess.Popen(command, stdout=log.open("wb"), stderr=subprocess.STDOUT)


def on_disk(folder: Path) -> set[str]:
    return done_ids(folder / "texts", TEXTS) | done_ids(folder / "ratings")


def tree(folder: Path) -> dict[str, bytes]:
    names = [*folder.glob("parquet/*"), *folder.glob("csv/*"), folder / "dropped.csv", folder / "README.md"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in names}


def settle(requests: list[Any]) -> None:
    """Until the endpoint has read what a killed run had sent."""
    seen = -1
    while seen < len(requests):
        seen = len(requests)
        time.sleep(1)


def test_killed_twice_and_stopped_once(endpoint: tuple[Any, str], tmp_path: Path) -> None:
    """While goldens are written, while they are rated, and while what failed is written again."""
    state, url = endpoint
    toy = Toy(state.reply)
    toy.writes = lambda stage, asked, text: (
        text.replace("has", "lacks")
        if stage == "golden" and "hasCandour hasTrust." in text and "earlier" not in asked
        else text
    )
    given = values(tmp_path, url)
    path, folder = write_spec(tmp_path / "toy.yaml", given), tmp_path / "out" / "toy"
    running: list[subprocess.Popen[bytes]] = []
    stops: list[int] = []

    def decide(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if stops and len(state.requests) == stops[0]:
            running[-1].send_signal(signal.SIGKILL if len(running) != 2 else signal.SIGTERM)
            time.sleep(0.2)
        return toy(request)

    state.decide = decide
    asked, before = list[set[str]](), set[str]()
    for run, after in enumerate((90, 200, 20, None)):
        state.requests.clear()
        stops[:] = [after] if after else []
        running.append(started(path, log := tmp_path / f"log-{run}"))
        code = running[-1].wait(timeout=200)
        assert code == (-signal.SIGKILL, 143, -signal.SIGKILL, 0)[run], log.read_text()
        settle(state.requests)
        asked.append({digest(request) for request in state.requests})
        assert len(asked[-1]) == len(state.requests), "within a run nothing is asked twice"
        there = on_disk(folder)
        assert before <= there, "what was written stays"
        if after is None:
            assert len(there) == len(before) + len(state.requests), "exactly what was missing is asked for"
        before = there
    assert "Next: dpeer data check" in log.read_text()
    alone = BuildSpec.model_validate(given | {"output_dir": str(tmp_path / "alone")})
    stops.clear()
    write(build(alone, no_ray))
    assert on_disk(alone.folder) == before
    assert tree(alone.folder) == tree(folder)
    texts = read_table(folder / "texts", TEXTS)
    assert texts["attempt"].max() == 1 and len(pd.read_parquet(folder / "parquet" / "train.parquet")) == 33
    assert os.listdir(folder / "parquet") == ["train.parquet"], "nothing half-written is left"
