"""Reading a run folder: what is unknown, unlimited, missing or damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dpeer.errors import DpeerError
from dpeer.report.run import read_run


def test_whole_run_is_read_without_notes(make_run):
    run = read_run(make_run(steps=20))
    assert [step.step for step in run.ledger] == list(range(1, 21))
    assert run.dimensions == ("E", "A", "T", "C") == run.constraints
    assert run.certificate is not None and [c.verdict[0] for c in run.certificate.constraints] == ["v", "s", "u", "s"]
    assert run.get("config.objective.beta") == 0.5
    assert run.get("config.model.lora", "none") == "none"
    assert run.get("config.name.deeper", 3) == 3
    assert run.notes == ()


def test_null_is_unknown(make_run):
    step = read_run(make_run(steps=5)).ledger[2]
    assert step.dimensions["T"].edges == 0 and math.isnan(step.dimensions["T"].loss)


@pytest.mark.parametrize("unlimited", ["inf", None, math.inf])
def test_infinite_tolerance_is_no_constraint(make_run, amend, unlimited):
    folder = make_run(steps=5)

    def free_e(line):
        line["constraints"]["E"]["tolerance"] = unlimited
        return line

    amend(folder / "ledger.jsonl", free_e)
    amend(
        folder / "certificate.json",
        lambda c: c | {"constraints": [c["constraints"][0] | {"tolerance": unlimited}, *c["constraints"][1:]]},
    )
    run = read_run(folder)
    assert run.constraints == ("A", "T", "C")
    assert run.certificate is not None and [c.name for c in run.certificate.constrained] == ["A", "T", "C"]


def test_sft_has_no_constraints_even_if_the_ledger_lists_some(make_run, amend):
    folder = make_run(steps=3)
    amend(folder / "manifest.json", lambda m: m | {"config": {"objective": {"kind": "sft"}}})
    assert read_run(folder).constraints == ()


@pytest.mark.parametrize(
    "tail", [b'{"step": 21, "object', b"\x00\x00\x00\x00", b"\xff\xfe{", b"12", b'{"objective": 1}', b"[]"]
)
def test_damaged_last_line_is_left_out_and_said(make_run, tail):
    folder = make_run(steps=20)
    with (folder / "ledger.jsonl").open("ab") as ledger:
        ledger.write(tail)
    run = read_run(folder)
    assert len(run.ledger) == 20
    assert run.notes == ("ledger.jsonl: 1 damaged line is left out (line 21); a killed run leaves one.",)


def test_repeated_steps_count_once_as_written_last(make_run):
    folder = make_run(steps=10)
    line = json.loads((folder / "ledger.jsonl").read_text().splitlines()[8]) | {"golden_nll": 7.5}
    with (folder / "ledger.jsonl").open("a") as ledger:
        ledger.write(json.dumps(line) + "\n")
    run = read_run(folder)
    assert len(run.ledger) == 10 and run.ledger[8].golden_nll == 7.5
    assert len(run.notes) == 1 and "1 steps were written twice" in run.notes[0]


def test_unfinished_run_says_so(make_run):
    run = read_run(make_run(steps=4, certificate=False))
    assert run.certificate is None
    assert any("has not finished" in note for note in run.notes)
    assert any("no certificate" in note for note in run.notes)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"constraints": [{"name": "E"}]}', '{"confidence": "high"}'])
def test_damaged_certificate_is_a_note(make_run, content):
    folder = make_run(steps=3)
    (folder / "certificate.json").write_text(content)
    run = read_run(folder)
    assert run.certificate is None
    assert len(run.notes) == 1 and run.notes[0].startswith("certificate.json is damaged")


@pytest.mark.parametrize("content", [None, "", "{", "[1]"])
def test_missing_or_damaged_manifest_is_a_note(make_run, content):
    folder = make_run(steps=3)
    (folder / "manifest.json").unlink()
    if content is not None:
        (folder / "manifest.json").write_text(content)
    run = read_run(folder)
    assert run.manifest == {}
    assert len(run.notes) == 1 and run.notes[0].startswith("manifest.json is")


def test_no_ledger_is_an_error_that_names_the_folder(tmp_path: Path):
    with pytest.raises(DpeerError, match=rf"{tmp_path.name} has no ledger.jsonl.*dpeer train"):
        read_run(tmp_path)


@pytest.mark.parametrize("content", ["", "\n\n", '{"step": 1, "lo'])
def test_ledger_without_a_complete_step_is_an_error(tmp_path: Path, content: str):
    (tmp_path / "ledger.jsonl").write_text(content)
    with pytest.raises(DpeerError, match="no complete step"):
        read_run(tmp_path)
