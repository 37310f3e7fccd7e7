"""The model card: front matter that a hub can read, and a text that claims no more than the certificate."""

from __future__ import annotations

import pytest
import yaml

from dpeer.errors import DpeerError
from dpeer.report.card import is_hub_id, model_card


def parts(card: str) -> tuple[dict, str]:
    empty, front, body = card.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front), body


def table(body: str, heading: str) -> list[list[str]]:
    rows = body.split(heading)[1].split("\n## ")[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows if row.startswith("|")]


def test_card_of_a_certified_run(make_run):
    front, body = parts(model_card(make_run()))
    assert front == {
        "base_model": "Qwen/Qwen3-8B",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "datasets": ["qisein/PersonaKnob"],
        "tags": ["dpeer", "dpo", "preference-optimization", "lagrangian"],
    }
    assert "2 of 4 dimensions meet their tolerance on held-out records.\nViolated: E. Undecided: T.\n" in body
    rows = table(body, "## Certificate")
    assert [row[:5] for row in rows[2:]] == [
        ["E", "violated", "0.620", "0.530 to 0.710", "0.4"],
        ["A", "satisfied", "0.300", "0.250 to 0.350", "0.4"],
        ["T", "undecided", "0.440", "0.380 to 0.500", "0.4"],
        ["C", "satisfied", "0.220", "0.170 to 0.270", "0.4"],
    ]
    assert {len(row) for row in [rows[0], *rows[2:]]} == {9} and rows[4][7:] == ["about 310", "0.450"]
    assert "counted up to 6, over prompts like the held-out ones" in body and "rarer than 1.4" in body
    assert "A 88\u00a0% (at least 81\u00a0%)" in body
    for line in ("- Edge loss: sigmoid, beta 0.5.", "weight 3.", "- Tolerance: 0.4.", "controller `ascent`"):
        assert line in body
    assert "1,331" in body and "cd" * 32 in body and "AutoModelForCausalLM.from_pretrained" in body


def test_card_of_a_model_that_sees(make_run):
    folder = make_run()
    (folder / "export").mkdir(exist_ok=True)
    (folder / "export" / "config.json").write_text('{"text_config": {}}')
    _, body = parts(model_card(folder))
    assert "model = AutoModelForImageTextToText.from_pretrained(folder)" in body and "Only its text part" in body
    (folder / "export" / "config.json").write_text("{}")
    _, body = parts(model_card(folder))
    assert "model = AutoModelForCausalLM.from_pretrained(folder)" in body and "Only its text part" not in body


def test_card_says_which_checkpoint_it_is_about(make_run, amend):
    folder = make_run(watched=True)
    training = {"steps": 200, "records_per_step": 32, "keep": "best", "stop_when": "certified"}
    amend(folder / "manifest.json", lambda m: m | {"exported_step": 40, "config": m["config"] | {"training": training}})
    _, body = parts(model_card(folder))
    assert "- Exported and certified: step 40, the lowest loss of the worst dimension on the dual split.\n" in body
    assert [row[0] for row in table(body, "## Data")[2:]] == ["training", "dual (moves the multipliers)", "held-out"]
    (folder / "stop.json").write_text('{"step": 80, "reason": "certified", "look": 2, "confidence": 0.991666}')
    amend(folder / "manifest.json", lambda m: m | {"exported_step": 80})
    _, body = parts(model_card(folder))
    assert "- Exported and certified: step 80.\n" in body
    assert "the dual split proved every tolerance, at look 2 with 99.17\u00a0% confidence" in body


def test_card_without_certificate_claims_nothing(make_run):
    _, body = parts(model_card(make_run(steps=3, certificate=False)))
    assert "There is no certificate for this model" in body and "satisfied" not in body


def test_sft_card_has_no_preference_method(make_run):
    front, body = parts(model_card(make_run(steps=3, kind="sft")))
    assert front["tags"] == ["dpeer", "sft"]
    assert "Maximum likelihood on golden responses" in body
    assert "beta" not in body and "Multipliers" not in body and "no constraints to certify" in body


@pytest.mark.parametrize(
    ("tolerance", "words"),
    [({"E": 0.3, "A": "inf"}, "Tolerance: E 0.3, A none."), (None, "Tolerance: none."), (0.25, "Tolerance: 0.25.")],
)
def test_tolerances_in_words(make_run, tolerance, words):
    assert words in model_card(make_run(steps=2, constraint={"form": "threshold", "tolerance": tolerance}))


def test_measured_constraints_are_not_sold_as_enforced(make_run):
    measured = {"form": "threshold", "tolerance": 0.4, "enforce": False}
    front, body = parts(model_card(make_run(steps=2, constraint=measured)))
    assert "lagrangian" not in front["tags"] and "measured, not enforced" in body and "controller" not in body


def test_margin_form_and_lora_are_described(make_run, amend):
    folder = make_run(steps=2, constraint={"form": "margin", "tolerance": 0.4, "slack": 0.1})
    amend(
        folder / "manifest.json",
        lambda m: m | {"config": m["config"] | {"model": {"path": "a/b", "lora": {"rank": 8}}}},
    )
    card = model_card(folder)
    assert "mean hinge" in card and "Tolerance: 0.4; slack 0.1." in card and "LoRA adapters of rank 8" in card


def test_local_paths_do_not_leave_the_machine(make_run, amend):
    folder = make_run(steps=2)
    private = {"model": {"path": "/home/someone/models/tiny"}, "data": {"train": "/home/someone/data/records.jsonl"}}
    amend(folder / "manifest.json", lambda m: m | {"config": m["config"] | private})
    front, body = parts(model_card(folder))
    assert "base_model" not in front and "datasets" not in front
    assert "someone" not in body and "tiny" in body and "records.jsonl" in body


def test_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "sft").mkdir(parents=True)
    assert is_hub_id("Qwen/Qwen3-8B")
    for path in ("runs/sft", "./a/b", "../a", "/a/b", "a/b/c", "data/x.jsonl", "plain"):
        assert not is_hub_id(path)


def test_pipes_in_names_keep_the_table_whole(make_run, amend):
    folder = make_run(steps=2)
    amend(
        folder / "certificate.json",
        lambda c: c | {"constraints": [row | {"name": "a|b"} for row in c["constraints"][:1]]},
    )
    assert "| a\\|b | violated |" in model_card(folder)


def test_unknown_base_model_is_an_error(make_run):
    folder = make_run(steps=2)
    (folder / "manifest.json").unlink()
    with pytest.raises(DpeerError, match="does not name the model"):
        model_card(folder)
