"""Output goes on into a file once nobody reads it: over real pipes and a real terminal whose other end is closed."""

from __future__ import annotations

import os
import pty
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import pytest
from rich.console import Console

from dpeer.launcher.outlasting import NOTE, Outlasting, outlasting


def pipe() -> tuple[TextIO, int]:
    reader, writer = os.pipe()
    return os.fdopen(writer, "w"), reader


def terminal() -> tuple[TextIO, int]:
    master, slave = pty.openpty()
    return os.fdopen(slave, "w"), master


@pytest.mark.parametrize("made", [pipe, terminal])
def test_lines_that_nobody_reads_go_on_into_the_log(made: Callable[[], tuple[TextIO, int]], tmp_path: Path) -> None:
    stream, reader = made()
    lasting = Outlasting(stream, tmp_path / "run" / "output.log")
    print("read", file=lasting, flush=True)
    assert os.read(reader, 100).strip() == b"read"
    os.close(reader)
    for i in range(200):
        print(f"line {i} {'x' * 100}", file=lasting, flush=i % 7 == 0)
    print("last", file=lasting, flush=True)
    console = Console(file=lasting)  # type: ignore[arg-type]
    console.print("by rich")
    stream.flush()
    lines = (tmp_path / "run" / "output.log").read_text().splitlines()
    assert lines[0] == NOTE.strip() and lines[-2:] == ["last", "by rich"]
    assert {line.split(" x")[0] for line in lines if line.startswith("line ")} == {f"line {i}" for i in range(200)}
    stream.close()


def test_where_no_log_can_be_written_lines_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    stream, reader = pipe()
    os.close(reader)
    lasting = Outlasting(stream, tmp_path / "file" / "output.log")
    for _ in range(3):
        print("x" * 10_000, file=lasting, flush=True)
    stream.close()


def test_other_faults_of_a_stream_are_raised(tmp_path: Path) -> None:
    stream = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"):
        print("x", file=Outlasting(stream, tmp_path / "log"), flush=True)
    assert not (tmp_path / "log").exists()
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    stream.close()


def test_streams_are_as_before_after_the_block(tmp_path: Path) -> None:
    before = sys.stdout, sys.stderr
    with outlasting(tmp_path / "log"):
        assert isinstance(sys.stdout, Outlasting) and isinstance(sys.stderr, Outlasting)
    assert (sys.stdout, sys.stderr) == before and not (tmp_path / "log").exists()
