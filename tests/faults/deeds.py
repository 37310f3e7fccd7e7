"""What is done to folders before, between and while commands run, and the ways back that messages name."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from dpeer.eval.store.parts import parts, write_part
from dpeer.launcher.lock import machine
from tests.faults.endpoint import Endpoint
from tests.faults.stage import NAME, Play
from tests.faults.trap import AWAY

Deed = Callable[[Play], None]


# Bytes


def _flip(play: Play, path: Path) -> None:
    """Change the byte in the middle; a copy is kept."""
    play.keep(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def flip(name: str) -> Deed:
    return lambda play: _flip(play, play.run / name)


def flip_cache(play: Play) -> None:
    _flip(play, max((play.place / "runs/reference_cache").glob("*.safetensors"), key=lambda p: p.stat().st_size))


def flip_part(table: str) -> Deed:
    return lambda play: _flip(play, parts(play.evaluation / table)[0])


def flip_union(play: Play) -> None:
    _flip(play, play.evaluation / "ratings.parquet")


def flip_draws(play: Play) -> None:
    _flip(play, play.evaluation / "irt/draws.npz")


# Files


def hide(name: str) -> Deed:
    def deed(play: Play) -> None:
        play.keep(play.run / name)
        delete(name)(play)

    return deed


def delete(name: str) -> Deed:
    def deed(play: Play) -> None:
        path = play.run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return deed


def restore(play: Play) -> None:
    """From a copy, as messages advise."""
    shutil.copytree(play.kept, play.place, dirs_exist_ok=True)


def move_away(play: Play) -> None:
    """By the very command that the message gives."""
    found = re.search(r"`mv (\S+) (\S+)`", play.lives[-1].said.replace("\n", " "))
    assert found, play.lives[-1].said
    shutil.move(found[1], found[2])


def cut_ledger(play: Play) -> None:
    play.keep(path := play.run / "ledger.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:100])


def later_manifest(play: Play) -> None:
    play.keep(path := play.run / "manifest.json")
    value = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in value.items() if k != "checksum"} | {"state_format": 2}))


def foreign_checkpoint(play: Play) -> None:
    """The same training, begun a second time: only the run's own number differs."""
    other = Play(play.stage, play.place / "elsewhere")
    other.place.mkdir()
    other.start("train")
    target = play.run / "checkpoints/step-0000004"
    shutil.rmtree(target)
    shutil.copytree(other.run / "checkpoints/step-0000004", target)
    shutil.rmtree(other.place)


def rename(play: Play) -> None:
    play.run.rename(play.run.with_name("other"))


def rename_back(play: Play) -> None:
    play.run.with_name("other").rename(play.run)


def bring_back(play: Play) -> None:
    shutil.rmtree(play.place / "runs", ignore_errors=True)
    (play.place / AWAY).rename(play.place / "runs")


def make_room(play: Play) -> None:
    (play.place / "filler").unlink()


def other_data(play: Play) -> None:
    lines = (play.stage.lab / "world/train.jsonl").read_text().splitlines(keepends=True)
    (play.place / "other.jsonl").write_text("".join(lines[1:]))


# Evaluations


def _damaged(play: Play) -> Path:
    found = re.search(r"error: (\S+part-\w+\.parquet)", play.lives[-1].said)
    assert found, play.lives[-1].said
    return Path(found[1])


def delete_damaged(play: Play) -> None:
    _damaged(play).unlink()


def double_part(play: Play) -> None:
    part = parts(play.evaluation / "ratings")[0]
    shutil.copy(part, part.with_name("part-copy.parquet"))


def delete_double(play: Play) -> None:
    next((play.evaluation / "ratings").rglob("part-copy.parquet")).unlink()


def score_nine(play: Play) -> None:
    part = parts(play.evaluation / "ratings")[0]
    rows = pq.read_table(part, partitioning=None).to_pylist()
    part.unlink()
    write_part(part.parent, [rows[0] | {"score": 9}, *rows[1:]])


def cut_rates(play: Play) -> None:
    for path in play.evaluation.rglob("rates.json"):
        path.write_bytes(path.read_bytes()[:40])


def other_rubric(play: Play) -> None:
    other = play.stage.live(play.command("judge", "--set", "judging.rubric=persona"), play.place)
    if other.code:
        play.problems.append(f"judging by another rubric ended with {other.code}: {other.said}")


def endpoint_that_dies(play: Play) -> None:
    play.endpoint = Endpoint()
    undisturbed = Play(play.stage, play.place / "elsewhere", endpoint=play.endpoint)
    shutil.copytree(play.evaluation.parent, undisturbed.evaluation.parent)
    done = undisturbed.start("judge by endpoint")
    if done.code:
        play.problems.append(f"judging ended with {done.code}: {done.said}")
        return
    play.expected = (undisturbed.evaluation / "ratings.parquet").read_bytes()
    shutil.rmtree(undisturbed.place)
    play.endpoint.serve(most=70)


def endpoint_returns(play: Play) -> None:
    assert play.endpoint
    rated = sum(pq.read_metadata(part).num_rows for part in parts(play.evaluation / "ratings"))
    if rated != 70:
        play.problems.append(f"{rated} ratings are on disk where 70 were given")
    play.endpoint.serve()


def fit_again(play: Play) -> None:
    play.start("fit")


def empty_program(play: Play) -> None:
    for program in play.stage.cache.rglob("model-*"):
        if program.is_file():
            program.write_bytes(b"")


# Others


def _refused(play: Play, what: str, words: str) -> None:
    second = play.stage.live(play.command(what), play.place)
    if second.code != 1 or not re.search(words, second.said):
        play.problems.append(f"the second one ended with {second.code}: {second.said}")


def second_driver(play: Play) -> None:
    _refused(play, "train", r"another driver \(host .*\) trains this run")


def second_judge(play: Play) -> None:
    _refused(play, "judge", "is being written by another run")


def lock(kind: str) -> Deed:
    owner = {"host": "h", "machine": machine(), "pid": 2**22 - 1, "started": "1", "token": "t"}
    texts = {
        "dead": json.dumps(owner),
        "elsewhere": json.dumps(owner | {"machine": "another boot"}),
        "empty": "",
    }

    def deed(play: Play) -> None:
        path = play.place / "runs/locks" / f"{NAME}.driver.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(texts[kind])

    return deed


def future_files(play: Play) -> None:
    for path in play.place.rglob("*"):
        os.utime(path, (time.time() + 3e7,) * 2)


def leave_rests(play: Play) -> None:
    """Temporary names as this and earlier versions give them, a day old."""
    runs, mark = play.place / "runs", "0123456789abcdef"
    (runs / "locks").mkdir(exist_ok=True)
    for path in (
        runs / f"reference_cache/.x.safetensors.{mark}.tmp", runs / "reference_cache/tmpab12cd_3",
        runs / f"locks/.{NAME}.driver.json.{mark * 2}", runs / f"locks/.now-{mark}",
        play.run / f".manifest.json.{mark}.tmp", play.run / f".report.html.{mark}.tmp",
    ):  # fmt: skip
        path.touch()
        os.utime(path, (time.time() - 86400,) * 2)
    for folder in (
        play.run / ".export.tmp", play.run / ".export.old", play.run / "checkpoints/.writing-0000006",
        play.run / "checkpoints/.removing-0000002", play.run / "checkpoints/step-0000000",
    ):  # fmt: skip
        folder.mkdir()
        (folder / "file").touch()
    shutil.copy(play.run / "checkpoints/step-0000002/state.json", play.run / "checkpoints/step-0000000")


def leave_rating_rests(play: Play) -> None:
    folder, mark = play.evaluation, "0123456789abcdef"
    judge = parts(folder / "ratings")[0].parent
    for path in (
        judge / f".part-1.parquet.{mark}.tmp", folder / f".ratings.parquet.{mark}.tmp",
        folder / f"ratings/.rates.json.{mark}.tmp",
    ):  # fmt: skip
        path.touch()
