"""Locks: one owner at a time, over processes; dead owners are followed, living ones never."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpeer.errors import CheckpointError
from dpeer.launcher import lock
from dpeer.launcher.lock import claim, exclusive, holder, read_owner

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from dpeer.launcher import lock
lock.BEAT_S = 0.05
with lock.claim(Path(sys.argv[1])) as ours:
    print(ours, flush=True)
    time.sleep(600)
"""
COUNT = """
import sys
from pathlib import Path
from dpeer.launcher.lock import exclusive
counter = Path(sys.argv[2])
for _ in range(40):
    with exclusive(Path(sys.argv[1]), lambda owner: None):
        value = int(counter.read_text())
        counter.write_text(str(value + 1))
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A lock and the other process that has it."""
    path = tmp_path / "locks" / "cell.json"
    process = python(HOLD, path)
    assert process.stdout and process.stdout.readline().strip() == "True"
    yield path, process
    process.kill()
    process.communicate()


def pretend_elsewhere(path: Path) -> None:
    """The lock as a driver on another machine would have left it."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"machine": "another boot", "host": "far"}))


def test_second_claim_is_refused_and_the_lock_goes_with_the_block(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "cell.json"
    with claim(path) as first, claim(path) as second:
        assert first and not second
        assert (owner := holder(path)) and owner.pid == os.getpid()
    assert holder(path) is None and not path.exists()
    with pytest.raises(KeyError), claim(path):
        raise KeyError
    assert not path.exists()
    assert [p.name for p in path.parent.iterdir()] == [".guard"]


def test_a_killed_owner_is_followed_at_once_a_suspended_one_is_not(held: tuple[Path, subprocess.Popen[str]]) -> None:
    path, process = held
    process.send_signal(signal.SIGSTOP)
    with claim(path) as ours:
        assert not ours
    process.kill()
    process.wait()
    assert holder(path) is None
    assert (owner := read_owner(path)) and owner.pid == process.pid
    with claim(path) as ours:
        assert ours


def test_a_process_id_that_was_given_again_is_not_the_owner(held: tuple[Path, subprocess.Popen[str]]) -> None:
    path, _ = held
    path.write_text(json.dumps(json.loads(path.read_text()) | {"started": "1"}))
    assert holder(path) is None


def test_an_owner_elsewhere_is_dead_when_it_has_been_silent_for_long(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "cell.json"
    with claim(path):
        pretend_elsewhere(path)
        assert holder(path)
        os.utime(path, (0, time.time() - lock.LEASE_S + 30))
        assert holder(path)
        os.utime(path, (0, time.time() - lock.LEASE_S - 30))
        assert holder(path) is None
        with claim(path) as ours:
            assert ours
            assert (owner := holder(path)) and owner.pid == os.getpid()


def test_one_driver_alone_waits_only_for_an_owner_who_may_be_dead(
    held: tuple[Path, subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, process = held
    told: list[str] = []
    with lock.sole_owner(path, lambda owner: told.append(owner.place)) as other:
        assert other and other.pid == process.pid and not told  # alive, as its process shows
    pretend_elsewhere(path)  # its beats go on: a sign of life
    monkeypatch.setattr(lock, "POLL_S", 0.05)
    with lock.sole_owner(path, lambda owner: told.append(owner.host)) as other:
        assert other and other.host == "far" and told == ["far"]
    process.kill()
    process.wait()
    monkeypatch.setattr(lock, "LEASE_S", 1.0)
    with lock.sole_owner(path, lambda owner: told.append(owner.host)) as other:
        assert other is None and (owner := holder(path)) and owner.pid == os.getpid()
    assert holder(path) is None


def test_a_folder_that_is_gone_hides_no_other_error(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "cell.json"
    with pytest.raises(ValueError, match="what happened"), claim(path):
        shutil.rmtree(path.parent)
        raise ValueError("what happened")


def test_who_has_lost_the_lock_ends(held: tuple[Path, subprocess.Popen[str]]) -> None:
    path, process = held
    path.write_text(json.dumps(json.loads(path.read_text()) | {"token": "another"}))
    assert process.wait(timeout=60) == 1
    assert process.stdout and "has lost its lock" in process.stdout.read()
    assert (owner := read_owner(path)) and owner.token == "another"


def test_a_lock_taken_while_it_was_judged_dead_goes_back(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "cell.json"
    with claim(path):
        judged = read_owner(path)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"token": "newer"}))
        lock._remove_dead(path, judged)
        assert (owner := read_owner(path)) and owner.token == "newer"


def test_processes_that_count_under_the_lock_lose_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    code = "from dpeer.launcher import lock\nlock.POLL_S = 0.001\n" + COUNT
    processes = [python(code, tmp_path / "locks" / "one.json", counter) for _ in range(3)]
    assert [p.wait(timeout=120) for p in processes] == [0, 0, 0]
    assert counter.read_text() == "120"


def test_waiting_is_told_once_who_holds_the_lock(held: tuple[Path, subprocess.Popen[str]]) -> None:
    path, process = held
    told = []

    def note(owner: lock.Owner) -> None:
        told.append(owner.pid)
        process.kill()
        process.wait()

    with exclusive(path, note):
        assert told == [process.pid]


def test_a_half_written_lock_is_told_at_once_and_followed_after_its_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, told = tmp_path / "run.json", list[lock.Owner]()
    path.write_text('{"host": "n')
    assert holder(path) == lock.DAMAGED and "damaged" in lock.DAMAGED.place

    def lease_ends(_: float) -> None:
        assert told == [lock.DAMAGED], "before the first wait"
        os.utime(path, (0, 0))

    monkeypatch.setattr(lock.time, "sleep", lease_ends)
    with lock.sole_owner(path, told.append) as other:
        assert other is None and (owner := read_owner(path)) and owner.pid == os.getpid()
    assert told == [lock.DAMAGED] and not path.exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file, not a folder")
    with pytest.raises(CheckpointError, match="cannot be written"), claim(tmp_path / "runs" / "locks" / "a.json"):
        pass


def test_a_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: Path) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    with claim(tmp_path / "a.json") as ours, claim(tmp_path / "a.json") as again:
        assert ours and not again and (owner := holder(tmp_path / "a.json")) and owner.pid == os.getpid()
