"""Faults of disks are told from bugs; temporary folders and files stay within bounds."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dpeer.disk import disk_fault
from dpeer.errors import CheckpointError
from dpeer.files import clear_temporary
from dpeer.launcher.driver import disk_faults
from dpeer.scratch import keep_newest, scratch
from dpeer.training.run_dir import RunDir


def test_real_writers_on_a_full_device_are_a_full_disk(tmp_path: Path) -> None:
    for name, write in (
        ("torch", lambda path: torch.save({"a": torch.zeros(100_000)}, path)),
        ("plain", lambda path: path.write_bytes(b"x" * 100_000)),
    ):
        (path := tmp_path / name).symlink_to("/dev/full")
        with pytest.raises((RuntimeError, OSError)) as caught:
            write(path)
        assert disk_fault(caught.value) == errno.ENOSPC
    with pytest.raises(SafetensorError) as caught:
        save_file({"a": torch.zeros(1)}, tmp_path / "none" / "x.safetensors")
    assert disk_fault(caught.value) == errno.ENOENT


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "cannot be written (No space left on device): make room"),
        (errno.EFBIG, "cannot be written (File too large): raise the limit on the size of files (`ulimit -f"),
        (errno.EACCES, "may not be written (Permission denied): permit writing"),
        (errno.EPERM, "may not be written (Operation not permitted)"),
        (errno.EROFS, "may not be written (Read-only file system)"),
        (errno.ENOENT, "is gone (No such file or directory): restore it"),
        (errno.EIO, "the disk itself fails"),
    ],
)
def test_each_fault_has_its_own_words(tmp_path: Path, number: int, said: str) -> None:
    path = tmp_path / "run" / "ledger.jsonl"
    with pytest.raises(CheckpointError) as caught, disk_faults(RunDir(tmp_path / "run")):
        raise OSError(number, os.strerror(number), str(path))
    assert str(caught.value).startswith(f"{path}: ") and said in str(caught.value)
    assert "go on with --resume" in str(caught.value)


def test_faults_of_libraries_have_the_words_too_and_bugs_stay_bugs(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    for fault in (
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
    ):
        with pytest.raises(CheckpointError, match="make room"), disk_faults(run):
            raise fault
    bugs: tuple[Any, ...] = (
        RuntimeError("shapes differ"),
        SafetensorError("InvalidHeader"),
        FileNotFoundError(errno.ENOENT, "No such file", "/usr/bin/nvcc"),
        OSError(errno.EINVAL, "Invalid argument", str(tmp_path / "run" / "x")),
    )
    for bug in bugs:
        with pytest.raises(type(bug)), disk_faults(run):
            raise bug


def test_scratch_is_private_goes_and_clears_up_after_the_killed(tmp_path: Path) -> None:
    killed, young = tmp_path / "dpeer-x-killed", tmp_path / "dpeer-x-young"
    for folder in (killed, young):
        (folder / "deep").mkdir(parents=True)
    os.utime(killed, (0, 0))
    with scratch("dpeer-x-", tmp_path) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        os.utime(folder, (0, 0))
        with scratch("dpeer-x-", tmp_path):
            assert folder.is_dir(), "in use, however old"
        assert not killed.exists() and young.exists()
    assert [p.name for p in tmp_path.iterdir()] == [young.name]


def test_where_the_file_system_knows_no_locks_nothing_of_others_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with scratch("dpeer-x-", tmp_path) as other:
        os.utime(other, (0, 0))
        with scratch("dpeer-x-", tmp_path) as folder:
            assert folder.is_dir()
        assert other.is_dir() and not folder.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_killed_writers_left_goes_and_what_may_be_in_use_stays(tmp_path: Path) -> None:
    for name in (".a.json.1.tmp", ".old.2.tmp", "a.json", ".lock"):
        (tmp_path / name).touch()
    (tmp_path / ".export.tmp" / "deep").mkdir(parents=True)
    os.utime(tmp_path / ".old.2.tmp", (0, 0))
    clear_temporary(tmp_path, silent_s=60)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.json.1.tmp", ".export.tmp", ".lock", "a.json"]
    clear_temporary(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "a.json"]


def test_only_the_newest_files_are_kept(tmp_path: Path) -> None:
    for k in range(6):
        (tmp_path / f"e-{k}.txt").touch()
        os.utime(tmp_path / f"e-{k}.txt", (k, k))
    (tmp_path / "other").touch()
    keep_newest(tmp_path, "e-*.txt", 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e-4.txt", "e-5.txt", "other"]
