"""A template that writes the date writes that of the run's first day, whenever and wherever the run goes on."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from dpeer.config import Config
from dpeer.errors import CheckpointError
from dpeer.integrity import write_state
from dpeer.toyworld.model import CHAT_TEMPLATE, tiny_model
from dpeer.training import dates
from dpeer.training.dates import dated
from dpeer.training.prepare import prepare
from dpeer.training.run_dir import RunDir, identity, same_recipe

WRITES_DATE = "{{ '<|im_start|>system\nToday is ' + strftime_now('%d %b %Y %H:%M') + '<|im_end|>' }}" + CHAT_TEMPLATE


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("dates")
    tiny_model(folder / "model", "qwen3", 1, vocab=300)
    (folder / "model" / "chat_template.jinja").write_text(WRITES_DATE)
    answers = [{"text": "It can wait.", "fails": []}, {"text": "Sure!", "fails": ["A"]}]
    rows = [{"prompt": f"Shall I paint boat {i}?", "mask": ["A"], "responses": answers} for i in range(4)]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "name": "x",
        "output_dir": str(folder / "runs"),
        "model": {"path": str(folder / "model"), "dtype": "fp32"},
        "data": {"train": str(folder / "d.jsonl"), "heldout": "none", "dual": "none", "max_tokens": 300},
        "objective": {"kind": "sft"},
        "training": {"steps": 2},
    }


def on(day: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Today(date):
        @classmethod
        def today(cls) -> Today:
            return cls.fromisoformat(day)

    monkeypatch.setattr(dates, "date", Today)


def test_a_run_keeps_its_day(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.model_validate(tree)
    files = RunDir(config.run_dir)
    on("2026-11-28", monkeypatch)
    first = dated(config)
    facts = prepare(first).facts
    files.begin(first, facts)
    on("2026-12-02", monkeypatch)
    again = dated(config)
    assert again == first and prepare(again).facts == facts
    files.check_resumable(again, facts)
    assert same_recipe(files.read_manifest()["config"], config)
    assert Config.model_validate(files.read_manifest()["config"]).data.date == date(2026, 11, 28)

    other = Config.model_validate(tree | {"data": tree["data"] | {"date": "2026-12-02"}})
    assert dated(other).data.date == date(2026, 12, 2)
    changed = prepare(other).facts
    assert changed["data"] != facts["data"]
    with pytest.raises(CheckpointError, match="data: was"):
        files.check_resumable(other, changed)
    assert identity(first, facts) == identity(other, facts)  # the day counts by what it does to the tokens


def test_a_run_of_an_earlier_version_began_when_its_manifest_was_made(tree: dict[str, Any]) -> None:
    config = Config.model_validate(tree | {"name": "old"})
    files = RunDir(config.run_dir)
    files.begin(config, {})
    write_state(files.manifest, files.read_manifest() | {"created": "2026-03-05T12:00:00+00:00"})
    assert dated(config).data.date == date(2026, 3, 5)


def test_a_template_is_told_the_day_of_its_tokenizer(tree: dict[str, Any], tmp_path: Path) -> None:
    from dpeer.data.load import load
    from dpeer.data.tokenize import audit
    from dpeer.model.lm import load_tokenizer

    tokenizer = load_tokenizer(tree["model"]["path"], today=date(2027, 2, 1))
    trees, faults = audit(load(tree["data"]["train"]), tokenizer)
    assert faults == () and "Today is 01 Feb 2027 00:00" in tokenizer.decode(trees[0].prompt)
    tokenizer.save_pretrained(tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".json" and "2027" in p.read_text()]
