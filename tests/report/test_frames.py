"""Tables of a certificate, and of any result as files."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from dpeer.launcher.cli import app
from dpeer.report.page import MOST_DOWNLOADED, report_html
from dpeer.report.run import read_run
from dpeer.report.table_files import as_latex, as_markdown


def run(*command: object) -> str:
    done = CliRunner().invoke(app, ["tables", *map(str, command)])
    assert done.exit_code == 0, done.output
    return done.output


def test_tables_hold_what_the_certificate_says(make_run: Callable[..., Path], tmp_path: Path) -> None:
    folder, out = make_run(), tmp_path / "out"
    run(folder, "-o", out, "--format", "csv", "--format", "json", "--format", "tex")
    said = json.loads((folder / "certificate.json").read_text())
    frame = pd.read_csv(out / "constraints.csv").set_index("constraint")
    for row in said["constraints"]:
        found = frame.loc[row["name"]]
        assert (found.value, found.value_low, found.value_high) == (row["estimate"], row["lower"], row["upper"])
        assert (found.verdict, found.records, found.mean_high) == (row["verdict"], 120, row["mean"]["upper"])
    assert len(pd.read_csv(out / "masks.csv")) == sum(map(len, said["masks"].values()))
    wins = {r["dimension"]: r["won_at_least"] for r in json.loads((out / "dimensions.json").read_text())}
    assert wins == {d: w["lower"] for d, w in said["wins"].items()}
    assert len(pd.read_csv(out / "selection.csv")) == 1 + len(said["selection"]["masks"])
    first = said["constraints"][0]
    cell = f"{first['estimate']:.2f} {{[}}{first['lower']:.2f}, {first['upper']:.2f}{{]}}"
    assert f"{first['name']} & {cell}" in (out / "constraints.tex").read_text()
    assert not list(out.glob("*.md"))


def test_stored_tables_come_back_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "arms.csv").write_text("label,loss,loss_lower,loss_upper\n'=a+b,0.5,0.25,\n'quoted',1,,\n")
    printed = run(tmp_path)
    assert "| =a+b | 0.50 [0.25, ] |" in printed.replace("\\", "") and "| 'quoted' | 1.00 |" in printed


def test_a_tolerance_is_not_rounded() -> None:
    frame = pd.DataFrame({"constraint": ["A", "E"], "value": [0.0042, 0.3], "tolerance": [0.005, 0.5]})
    assert "| A | 0.00 | 0.005 |\n| E | 0.30 | 0.50 |\n" in as_markdown(frame)


def test_a_probability_is_never_certain_and_minus_is_no_hyphen() -> None:
    frame = pd.DataFrame({"name": ["a-1"], "p_better": [1.0], "rank_probability": [0.004], "share": [1.0]})
    frame = frame.assign(gap=-0.5, gap_low=-1.25, gap_high=0.25)
    assert "| a-1 | >0.99 | <0.01 | 1.00 | -0.50 [-1.25, 0.25] |" in as_markdown(frame)
    line = r"a-1 & \textgreater{}0.99 & \textless{}0.01 & 1.00 & $-$0.50 {[}$-$1.25, 0.25{]} \\"
    assert line in as_latex(frame)


def test_what_has_no_tables_is_told(make_run: Callable[..., Path], tmp_path: Path) -> None:
    for folder, words in ((tmp_path, "no tables here"), (make_run(certificate=False), "no certificate")):
        done = CliRunner().invoke(app, ["tables", str(folder)])
        assert done.exit_code == 1 and words in done.output.replace("\n", " ")
    done = CliRunner().invoke(app, ["tables", str(tmp_path), "-o", str(tmp_path / "x"), "--format", "xlsx"])
    assert done.exit_code == 1 and "csv, json, md, tex" in done.output


@pytest.mark.parametrize("form", ["threshold", "balance"])
def test_the_page_carries_its_table(make_run: Callable[..., Path], form: str, tmp_path: Path) -> None:
    folder = make_run(constraint={"form": form})
    page = report_html(read_run(folder))
    run(folder, "-o", tmp_path / "out", "--format", "csv", "--format", "md", "--format", "tex")
    carried = re.findall(r'<a download="constraints\.(\w+)" href="data:text/plain;base64,([^"]+)"', page)
    assert [end for end, _ in carried] == ["csv", "md", "tex"] and MOST_DOWNLOADED >= 12
    for end, content in carried:
        assert base64.b64decode(content) == (tmp_path / "out" / f"constraints.{end}").read_bytes()
