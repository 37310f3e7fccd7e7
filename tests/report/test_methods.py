"""The methods section says what the manifest and the certificate say, in two media, and cites only works that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dpeer.eval.report.methods import evaluation_methods
from dpeer.launcher.cli import app
from dpeer.report.methods import Writer, references, training_methods
from dpeer.report.run import read_run
from tests.eval.made_results import make_result

Amend = Callable[[Path, Callable[[Any], Any]], None]


def flat(text: str) -> str:
    return " ".join(text.split())


def test_numbers_of_a_run_are_those_of_its_files(make_run: Callable[..., Path]) -> None:
    run = make_run()
    text = flat(training_methods(read_run(run), Writer("md")))
    manifest = json.loads((run / "manifest.json").read_text())
    for split in manifest["data"].values():
        assert f"{split['records']:,} records with {sum(split['edges'].values()):,} pairs" in text
    assert "80 steps of 32 records" in text and "$\\beta = 0.5$" in text and "tolerance 0.4" in text
    certificate = json.loads((run / "certificate.json").read_text())
    for c in certificate["constraints"]:
        assert f"{c['name']}: {c['verdict']}" in text
    assert "All weights were trained" in text and "71" in text


def test_both_media_cite_what_the_bibliography_has(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run()
    for suffix in ("md", "tex"):
        file = tmp_path / f"methods.{suffix}"
        done = CliRunner().invoke(app, ["methods", str(run), "-o", str(file)])
        assert done.exit_code == 0, done.output
        text, bib = file.read_text(), file.with_suffix(".bib").read_text()
        found = re.findall(r"@([a-z]+\d{4}[a-z]*)" if suffix == "md" else r"citep\{([^}]*)\}", text)
        cited = {key for group in found for key in group.split(",")}
        assert cited and cited == set(re.findall(r"^@\w+\{([^,]+),", bib, re.M))
        assert "{{" not in text and "None" not in text and "\ufffd" not in text and "\x1e" not in text
        assert text.count("\n## " if suffix == "md" else "\\paragraph") + (suffix == "md") == 5
        if suffix == "tex":
            assert not re.search(r"(?<!\\)[%&#]", text) and text.count("{") == text.count("}")
            assert text.count("$") % 2 == 0


@pytest.mark.parametrize("name", ["a_b%c", "x & y", "</td>*em*"])
def test_names_from_data_are_guarded(make_run: Callable[..., Path], amend: Amend, name: str) -> None:
    run = make_run()
    amend(run / "manifest.json", lambda m: m | {"config": m["config"] | {"model": {"path": name, "dtype": "fp32"}}})
    from dpeer.escape import latex, markdown

    shown = Path(name).name
    assert markdown(shown) in training_methods(read_run(run), Writer("md"))
    assert latex(shown) in training_methods(read_run(run), Writer("tex"))


def test_kinds_of_runs_say_what_they_are(make_run: Callable[..., Path]) -> None:
    assert "maximum likelihood" in flat(training_methods(read_run(make_run("sft", kind="sft")), Writer("md")))
    text = flat(training_methods(read_run(make_run("open", certificate=False)), Writer("md")))
    assert "no certificate" in text and "satisfied" not in text


def test_a_fit_claims_only_behind_a_green_gate() -> None:
    for green in (True, False):
        result = make_result(green=green)
        writer = Writer("md")
        text = flat(evaluation_methods(result, writer))
        assert ("simultaneous 95 %" in text) is green
        row = result.contrasts.iloc[0]
        assert (f"{row.model} in {row.dimension}" in text) is green
        assert {"hoffman2014nuts", "linacre1989many"} <= writer.cited.keys()


def test_folders_that_are_neither_are_refused(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    done = CliRunner().invoke(app, ["methods", str(tmp_path / "absent")])
    assert done.exit_code == 1 and "neither a run" in flat(done.output)
    done = CliRunner().invoke(app, ["methods", str(make_run()), "-o", str(tmp_path / "x.docx")])
    assert done.exit_code == 1 and ".tex" in done.output
    assert all({"type", "title", "year"} <= work.keys() for work in references().values())
