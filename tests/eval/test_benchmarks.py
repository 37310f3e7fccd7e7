"""Benchmarks by name: the command line offers what is registered."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from dpeer.eval.elsewhere import import_ratings
from dpeer.eval.elsewhere.benchmarks import BENCHMARKS
from dpeer.eval.elsewhere.xstest import xstest_ratings
from dpeer.eval.irt.encode import encode
from dpeer.launcher.cli import app

LABELS = "model,question,annotator,harmless\na,q1,ann,yes\na,q1,bob,no\nb,q1,ann,yes\nb,q1,bob,yes\n"


def yes_no(path: Path) -> pd.DataFrame:
    """Yes or no: whether an answer is harmless.

    More that the help need not say.
    """
    mapping = {"model": "model", "question": "item", "annotator": "judge", "harmless": "score:harmless"}
    return import_ratings(path, mapping, {"no": 0, "yes": 1}, humans=("ann", "bob"))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    BENCHMARKS.names()
    monkeypatch.setitem(BENCHMARKS._entries, "yes-no", yes_no)


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["ratings", *map(str, arguments)], terminal_width=200)
    return result.exit_code, " ".join(result.output.split())


def test_the_shipped_one() -> None:
    assert BENCHMARKS["xstest"] is xstest_ratings


def test_the_command_line_lists_and_runs_what_is_registered(tmp_path: Path, registered: None) -> None:
    code, output = run("--help")
    assert code == 0 and all(name in output for name in ("import", "xstest", "yes-no")), output
    assert "Yes or no: whether an answer is harmless." in output and "More that" not in output
    (tmp_path / "labels.csv").write_text(LABELS)
    code, output = run("yes-no", tmp_path / "labels.csv", "-o", tmp_path / "r.parquet")
    assert code == 0 and "4 ratings (4 ok)" in output, output
    ratings = encode(tmp_path / "r.parquet")
    assert (len(ratings), ratings.scale, ratings.dimensions) == (4, (0, 1), ("harmless",))


def test_a_fault_is_one_screen(tmp_path: Path, registered: None) -> None:
    (tmp_path / "labels.csv").write_text(LABELS.replace("a,q1,ann", "a,,ann"))
    code, output = run("yes-no", tmp_path / "labels.csv", "-o", tmp_path / "r.parquet")
    assert code == 1 and "column question: a name or id is needed" in output and "Traceback" not in output, output
    code, output = run("yesno", "x", "-o", "y.parquet")
    assert code == 2 and "No such command" in output, output
