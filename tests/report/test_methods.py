"""The methods section says what the manifest and the certificate say, in two media, and cites only works that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
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


def written(run: Path, **config: Any) -> str:
    """The section of a run whose manifest says this too: keys are dotted, with __."""
    manifest = json.loads((run / "manifest.json").read_text())
    for key, value in config.items():
        *above, last = key.split("__")
        place = manifest
        for name in above:
            place = place.setdefault(name, {}) or place
        place[last] = value
    (run / "manifest.json").write_text(json.dumps(manifest))
    return flat(training_methods(read_run(run), Writer("md")))


DUAL = {"sha256": "ef" * 32, "records": 140, "edges": {"A": 90}}


def test_weights_are_those_of_the_form(make_run: Callable[..., Path]) -> None:
    texts = {
        form: written(
            make_run(form, constraint={"form": form, "tolerance": 0.4, "slack": 0.125}),
            config__objective__dual__relaxed_cost=0.25,
        )
        for form in ("threshold", "winrate", "worst", "balance", "margin", "protect")
    }
    with_sum = {form for form, text in texts.items() if "primary weight plus its multiplier," in text}
    assert with_sum == {"threshold", "winrate", "protect"}
    assert "in place of primary weights" in texts["worst"] and "relaxed" not in texts["worst"]
    assert "primary weights of the dimensions, with" not in texts["worst"] and "at most 20" not in texts["worst"]
    assert "less those of constraints that compare" in texts["balance"]
    assert "weighs the bounded value itself" in texts["margin"] and "slack 0.125" in texts["margin"]
    assert "follow the bounded share" in texts["winrate"] and "slack" not in texts["threshold"]
    assert all("at the end none was" in texts[form] for form in texts if form != "worst")


def test_only_what_was_done_is_said(make_run: Callable[..., Path]) -> None:
    text = written(
        make_run("a"), data__dual=DUAL, config__objective__dual__relaxed_cost="inf", config__training__keep="best",
        config__training__optimizer={"grad_clip": 0.0, "betas": [0.9, 0.95]}, exported_step=40,
        config__model__lora={"path": "/home/me/first", "rank": None},
    )  # fmt: skip
    assert "relaxed" not in text and "clipped at" not in text and "None" not in text and "/home" not in text
    assert "moves the Lagrange multipliers and decides which checkpoint is kept" in text
    assert "exported is that of step 40, the lowest loss of the worst dimension" in text
    assert "adapters, at first those of first, were trained" in text
    for name, changes in {
        "batch": {"config__objective__dual__evidence": "batch"},
        "measured": {"config__objective__constraint__enforce": False},
    }.items():
        text = written(make_run(name), data__dual=DUAL, **changes)
        assert "dual split never enters a gradient." in text and "moves the" not in text
    text = written(make_run("sft", kind="sft"), data__dual=DUAL)
    assert "Lagrange" not in text and "multipliers" not in text
    open_run = written(make_run("open", certificate=False))
    assert "Training has not finished" in open_run and "was used once" not in open_run


def test_an_earlier_certificate_is_not_said_to_be_by_betting(make_run: Callable[..., Path], amend: Amend) -> None:
    run = make_run()
    amend(run / "certificate.json", lambda c: c | {"bound": None})
    text = written(run)
    assert "earlier version of dpeer" in text and "betting" not in text and "whatever the distribution" not in text


def test_the_model_of_a_fit_is_the_one_that_was_fitted() -> None:
    made = make_result(green=True)

    def of(**facts: Any) -> str:
        changed = replace(made, facts=made.facts | facts)
        return flat(evaluation_methods(changed, Writer("md")))

    people = of(people_scale=["E", "T"], options={"model": "gmfrm", "chains": 4, "draws": 1000, "warmup": 1000})
    assert "In E and T abilities are on the scale of the people" in people and "Severities sum to zero" not in people
    compared = of(ratings=0, comparisons=120)
    assert "Rasch" not in compared and "everit" not in compared and "0 usable" not in compared
    anchored = of(options={"anchors": "2 judges", "chains": 4}, earlier_origin=["E"])
    assert "count from its origin in E, and elsewhere sum to zero" in anchored and "Severities sum" not in anchored
    common = of(options={"thresholds": "common", "chains": 4}, dimensions=1)
    assert "partial credit" not in common and "correlated" not in common and "discrimination" not in common
    assert "warm-up iterations" not in of(started_from_earlier=True)
    assert "of 1,000 draws" in people and "more, drawn until" not in people
    went_on = of(parts=[1000, 300, 130], options={"chains": 4, "draws": 1000, "warmup": 1000})
    assert "of 1,000 draws after 1,000 warm-up iterations, and 430 more, drawn until the criteria" in went_on
    family = made.tables["contrasts"].copy()
    family.loc[family.index[1:], ["family_low", "family_high"]] = float("nan")
    one = flat(evaluation_methods(replace(made, tables=made.tables | {"contrasts": family}), Writer("md")))
    assert "over 1 contrast:" in one


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
