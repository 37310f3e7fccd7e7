"""Ids, part files, anti-join, lock: what makes a run resumable."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dpeer.errors import DataError
from dpeer.eval.store import parts as ratings
from dpeer.eval.store.schema import RATINGS


def row(rating_id: str, **values: Any) -> dict[str, Any]:
    return {"rating_id": rating_id, "judge": "j", "status": "ok", "score": 3, "logprobs": [-1.0, -2.0]} | values


def test_an_id_depends_on_every_part_and_on_nothing_else() -> None:
    parts = {"judge": "j", "repeat": 0, "sampling": {"a": 1, "b": 0.5}, "text": "\ud800 ∑"}
    first = ratings.content_id(**parts)
    assert len(first) == 32 and set(first) <= set("0123456789abcdef")
    assert ratings.content_id(**dict(reversed(parts.items()))) == first
    changes: list[dict[str, Any]] = [
        {"judge": "k"}, {"repeat": 1}, {"sampling": {"a": 1, "b": 0.25}}, {"text": ""}, {"more": None}
    ]  # fmt: skip
    assert len({first} | {ratings.content_id(**(parts | change)) for change in changes}) == 1 + len(changes)


def test_parts_come_back_as_one_table_with_all_columns(tmp_path: Path) -> None:
    ratings.write_part(tmp_path / "judge=a", [row("1"), row("2", status="unparsed", score=None, error="no JSON")])
    ratings.write_part(tmp_path / "judge=b", [row("3", judge="b")])
    table = ratings.read_table(tmp_path).set_index("rating_id")
    assert list(table.columns) == RATINGS.names[1:]
    assert table["status"].to_dict() == {"1": "ok", "2": "unparsed", "3": "ok"}
    assert table["score"].isna().to_dict() == {"1": False, "2": True, "3": False}
    assert list(table.loc["1", "logprobs"]) == [-1.0, -2.0]
    assert ratings.done_ids(tmp_path) == {"1", "2", "3"}


def test_nothing_written_reads_as_an_empty_table(tmp_path: Path) -> None:
    assert ratings.read_table(tmp_path / "absent").empty
    assert ratings.done_ids(tmp_path / "absent") == set()


def test_an_interruption_leaves_nothing_and_what_a_kill_leaves_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratings.write_part(tmp_path, [row("1")])

    def die(stream: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dpeer.files.os.fsync", die)
        ratings.write_part(tmp_path, [row("2")])
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / "judge=j").mkdir()
    (left := tmp_path / "judge=j" / ".part-ab.parquet.77.tmp").write_bytes(b"PAR1 half a file")
    assert ratings.done_ids(tmp_path) == {"1"}
    assert list(ratings.read_table(tmp_path)["rating_id"]) == ["1"]
    with ratings.lock(tmp_path):
        assert not left.exists()


def test_a_full_disk_is_said_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(stream: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("dpeer.files.os.fsync", full)
    with pytest.raises(DataError, match=r"written \(No space left on device\): make room there\. What was finished"):
        ratings.write_part(tmp_path, [row("1")])
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (
        lambda: ratings.write_part(tmp_path / "file" / "ratings", [row("1")]),
        lambda: ratings.write_table(tmp_path / "file" / "t.parquet", pd.DataFrame([row("1")])),
        lambda: ratings.lock(tmp_path / "file" / "ratings").__enter__(),
    ):
        with pytest.raises(DataError, match=r"file.*cannot be written \((Not a directory|File exists)\)"):
            write()


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    path = ratings.write_part(tmp_path, [row("1")])
    path.write_bytes(path.read_bytes()[:-20])
    for reader in (ratings.read_table, ratings.done_ids):
        with pytest.raises(DataError, match=rf"{path.name}.*damaged"):
            reader(tmp_path)


def test_a_part_without_the_columns_of_this_version_is_named(tmp_path: Path) -> None:
    pd.DataFrame({"rating_id": ["1"], "judge": ["a"]}).to_parquet(tmp_path / "part-old.parquet")
    with pytest.raises(DataError, match=r"part-old\.parquet.*another version"):
        ratings.read_table(tmp_path)


def test_ids_that_occur_twice_are_named_with_their_files(tmp_path: Path) -> None:
    one = ratings.write_part(tmp_path, [row("aa"), row("bb")])
    two = ratings.write_part(tmp_path / "judge=j", [row("bb"), row("cc")])
    for reader in (ratings.read_table, ratings.done_ids):
        with pytest.raises(DataError, match=r"1 ids occur more than once \(bb in ") as caught:
            reader(tmp_path)
        assert one.name in str(caught.value) and two.name in str(caught.value)


def test_the_same_rows_written_again_take_the_place_of_the_first(tmp_path: Path) -> None:
    assert ratings.write_part(tmp_path, [row("1"), row("2")]) == ratings.write_part(tmp_path, [row("2"), row("1")])
    assert len(ratings.read_table(tmp_path)) == 2


def test_anti_join_keeps_what_is_missing_in_planned_order() -> None:
    planned = pd.DataFrame({"rating_id": ["c", "a", "b", "d"], "judge": list("wxyz")})
    assert list(ratings.anti_join(planned, {"a", "d", "q"})["judge"]) == ["w", "y"]


def test_rows_of_a_status_are_taken_out_and_the_others_stay(tmp_path: Path) -> None:
    bad = {"status": "engine_error", "score": None}
    ratings.write_part(tmp_path, [row("1"), row("2", **bad)])
    ratings.write_part(tmp_path, [row("3", **bad)])
    ratings.write_part(tmp_path, [row("4")])
    assert ratings.drop_rows(tmp_path, ("engine_error", "truncated")) == 2
    assert ratings.done_ids(tmp_path) == {"1", "4"}
    assert ratings.drop_rows(tmp_path, ("engine_error", "truncated")) == 0
    ratings.write_part(tmp_path, [row("2"), row("3")])
    assert ratings.read_table(tmp_path)["status"].tolist() == ["ok"] * 4


def _hold(folder: str, held: Any, release: Any) -> None:
    with ratings.lock(Path(folder)):
        held.set()
        release.wait(30)


def test_a_second_run_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path), held, release))
    other.start()
    assert held.wait(30)
    with pytest.raises(DataError, match=f"pid {other.pid} on {os.uname().nodename}"), ratings.lock(tmp_path):
        raise AssertionError("two runs at once")
    other.kill()  # a killed run leaves the file, not the lock
    other.join()
    with ratings.lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"pid {os.getpid()} on {os.uname().nodename}"
