"""Damaged files of an evaluation: what follows from others is made again and said, the rest is refused by name."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from dpeer.errors import DataError
from dpeer.eval.irt import cmdstan
from dpeer.eval.irt.chains import Chains, Wanted
from dpeer.eval.irt.encode import encode
from dpeer.eval.irt.errors import IrtError
from dpeer.eval.judge import judge
from dpeer.eval.run import RATES, read_rates
from dpeer.eval.store.parts import parts, write_part
from dpeer.integrity import BLANK, seal
from tests.eval.evaluations import no_ray
from tests.eval.test_backends import evaluation, remembered
from tests.eval.test_judge import recorded

__all__ = ["remembered"]


def flip(path: Path, at: float) -> bytes:
    """Change one byte; returns what was there."""
    whole = path.read_bytes()
    content = bytearray(whole)
    content[int(at * len(content))] ^= 4
    path.write_bytes(content)
    return whole


def test_a_damaged_table_is_made_again_and_damaged_parts_are_refused(tmp_path: Path, remembered: Any) -> None:
    cfg = evaluation(tmp_path, "first", "second")
    table = judge(cfg, no_ray)
    whole = pd.read_parquet(table)
    for at in (0.1, 0.5, 0.999):
        before = flip(table, at)
        with pytest.raises(
            DataError, match=r"ratings\.parquet does not match its checksum.*`dpeer judge RECIPE` makes"
        ):
            encode(table)
        with recorded() as (console, said):
            judge(cfg, no_ray, console=console)
        assert "ratings.parquet is damaged" in said.getvalue() and "made again" in said.getvalue()
        pd.testing.assert_frame_equal(pd.read_parquet(table), whole)
        assert table.read_bytes() == before
    part = parts(cfg.folder / "ratings")[0]
    for at in (0.0, 0.3, 0.9):
        kept = flip(part, at)
        with pytest.raises(DataError, match=f"{part.name}.*damaged.*delete it: the next run makes its rows again"):
            judge(cfg, no_ray)
        part.write_bytes(kept)
    part.unlink()
    assert len(pd.read_parquet(judge(cfg, no_ray))) == len(whole)


def test_scores_that_the_rubric_does_not_know_are_refused(tmp_path: Path, remembered: Any) -> None:
    cfg = evaluation(tmp_path, "first", "second")
    judge(cfg, no_ray)
    part = parts(cfg.folder / "ratings")[0]
    (row,) = pq.read_table(part).to_pylist()
    part.unlink()
    write_part(part.parent, [row | {"score": 9}])
    with pytest.raises(DataError, match=r"part-.*: 1 ratings have scores .* such as 9 of .*delete it: the next run"):
        judge(cfg, no_ray)


@pytest.mark.parametrize("content", ["", '{"a": {"calls"', "[]", '{"a": {}, "state_format": 2}'])
def test_damaged_rates_are_ignored_and_said(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / RATES).write_text(content)
    assert read_rates(tmp_path) == {}
    said = capsys.readouterr().err
    assert "rates.json" in said and "ignored" in said


def test_an_emptied_or_changed_program_is_compiled_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, said = tmp_path / "model", list[str]()
    assert not cmdstan._sound(program, said.append) and said == []
    whole = seal(b"\x7fELF code" + BLANK.encode())
    for content, sound in ((whole, True), (b"\x7fELF of an earlier version", True), (b"", False)):
        program.write_bytes(content)
        assert cmdstan._sound(program, said.append) is sound
    flipped = bytearray(whole)
    flipped[6] ^= 1
    program.write_bytes(flipped)
    assert not cmdstan._sound(program, said.append)
    assert len(said) == 2 and all("compiling it again" in line for line in said)
    assert capsys.readouterr().err.count("compiling it again") == 2


def test_a_killed_chain_is_told_in_a_line(tmp_path: Path) -> None:
    program = tmp_path / "model"
    program.write_text('#!/bin/sh\n[ "$1" = info ] || { for i in 1 2 3; do echo setting $i; done; kill -9 $$; }\n')
    program.chmod(0o755)
    with pytest.raises(IrtError, match=f"killed by signal {int(signal.SIGKILL)} .SIGKILL.*no memory left") as caught:
        Chains(program, Wanted(), lambda done: None).run(chains=1, output_dir=str(tmp_path))
    assert "\n" not in str(caught.value) and "setting" not in str(caught.value)
