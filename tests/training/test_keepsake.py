"""A run is exported without the files it was trained on, and from wherever its folder and its model have gone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from dpeer.config import Config
from dpeer.errors import CheckpointError, ConfigError, DataError
from dpeer.model.words import exported
from dpeer.toyworld.model import tiny_model
from dpeer.training import checkpoint, world
from dpeer.training.export import export
from dpeer.training.generation import unstopped
from dpeer.training.keepsake import found_again, recall, remembered
from dpeer.training.policy import Policy
from dpeer.training.prepare import prepare
from dpeer.training.run_dir import RunDir


def row(i: int) -> dict[str, object]:
    responses = [{"text": f"Boat {i} can wait.", "fails": []}, {"text": "Sure!" * (i + 1), "fails": ["A"]}]
    return {"prompt": f"Shall I paint boat {i} now?", "mask": ["A"], "responses": responses}


def recipe(model: str, train: str) -> Config:
    return Config.model_validate(
        {
            "name": "x",
            "model": {"path": model, "dtype": "fp32", "export_dtype": "fp32"},
            "data": {"train": train, "heldout": "none", "dual": "none", "max_tokens": 200},
            "objective": {"kind": "sft"},
            "training": {"steps": 2, "records_per_step": 2, "optimizer": {"lr": 0.01}},
            "cluster": {"engine": "plain", "reference": "colocated"},
        }
    )


def test_an_export_needs_neither_data_nor_the_old_folder(
    here: world.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    monkeypatch.chdir(old)
    tiny_model(old / "model", "qwen3", 1, vocab=300)
    (old / "d.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(5)))
    config = recipe("model", "d.jsonl")
    prepared = prepare(config)
    policy, files = Policy(config, prepared, here), RunDir(old / "runs" / "x")
    policy.train_step(None)
    files.begin(config, prepared.facts, remembered(prepared))
    checkpoint.save(policy, files.checkpoint(1), prepared.facts)
    export(policy, tmp_path / "expected")
    policy.close()

    shutil.move(old / "runs", new)  # and nothing else is left of the old folder, but the model in another place
    shutil.move(old / "model", tmp_path / "elsewhere")
    shutil.rmtree(old)
    monkeypatch.chdir(tmp_path)
    moved = RunDir(new / "x")
    manifest = moved.read_manifest()
    again = found_again(Config.model_validate(manifest["config"]), manifest["folder"], tmp_path / "elsewhere")
    recalled = recall(manifest, again)
    assert recalled is not None and recalled.facts == prepared.facts and len(recalled.train.trees) <= 2
    policy = Policy(again, recalled, here)
    checkpoint.load(policy, moved.checkpoint(1), recalled.facts)
    export(policy, tmp_path / "found")
    expected, found = (AutoModelForCausalLM.from_pretrained(tmp_path / n).state_dict() for n in ("expected", "found"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)

    other = tiny_model(tmp_path / "other", "qwen3", 2, vocab=300)
    wrong = recall(manifest, found_again(again, None, other))
    assert wrong is not None
    with pytest.raises(CheckpointError, match="model"):
        checkpoint.load(policy, moved.checkpoint(1), wrong.facts)
    policy.close()


def test_a_manifest_of_an_earlier_version_asks_for_the_data() -> None:
    assert recall({"data": {}, "reference": {}}, recipe("m", "d")) is None


def test_relative_places_are_those_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    config = recipe("model", "d")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert found_again(config, str(tmp_path)).model.path == str(tmp_path / "model")
    os.mkdir("model")
    assert found_again(config, str(tmp_path)).model.path == "model"
    assert found_again(recipe("owner/name", "d"), str(tmp_path)).model.path == "owner/name"


ENDLESS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ 'calm ' if calm }}{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ 'calm ' if calm }}{% endif %}"
)


def test_a_template_of_the_recipe_is_that_of_the_export(here: world.World, tmp_path: Path) -> None:
    """With what it was asked, and the end of turn that it does not write; and of no other one."""
    tiny_model(tmp_path / "model", "qwen3", 1, vocab=300, eos_token_id=0)
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    (tmp_path / "chat.jinja").write_text(ENDLESS)
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row(i)) + "\n" for i in range(5)))
    given = {"chat_template": str(tmp_path / "chat.jinja"), "template_kwargs": {"calm": True}}
    bare = recipe(str(tmp_path / "model"), str(tmp_path / "d.jsonl"))
    config = bare.model_copy(update={"model": bare.model.model_copy(update=given)})
    with pytest.raises(DataError, match=r"data\.end_of_turn"):
        prepare(config)
    config = config.model_copy(update={"data": bare.data.model_copy(update={"end_of_turn": "<|im_start|>"})})
    prepared = prepare(config)
    assert "chat_template" in prepared.facts and prepared.facts != prepare(bare).facts
    policy, files = Policy(config, prepared, here), RunDir(tmp_path / "runs" / "x")
    files.begin(config, prepared.facts, remembered(prepared))
    notes = export(policy, tmp_path / "export")["notes"]
    policy.close()
    assert any("end-of-turn" in note for note in notes)

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    (tree, *_), start = prepared.train.trees, tokenizer.convert_tokens_to_ids("<|im_start|>")
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "Shall I paint boat 0 now?"}], tokenize=False)
    assert asked == "<|im_start|>user\ncalm Shall I paint boat 0 now?\n" and tree.responses[0][-1] == start
    assert tokenizer.init_kwargs["template_kwargs"] == {"calm": True}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert model.generation_config.eos_token_id == [0, start] and unstopped(model, tmp_path / "export", tree) is None
    GenerationConfig(eos_token_id=0).save_pretrained(tmp_path / "export")
    assert f"goes on after token {start}" in str(unstopped(model, tmp_path / "export", tree))

    (tmp_path / "chat.jinja").write_text(ENDLESS + "{# another #}")
    with pytest.raises(CheckpointError, match="chat_template: was"):
        files.check_resumable(config, prepare(config).facts)
    manifest = files.read_manifest()
    recalled = recall(manifest, config)
    assert recalled is not None and recalled.facts["chat_template"] != manifest["chat_template"]
    assert recalled.ends == prepared.ends == {start}
    del manifest["responses"]
    assert (older := recall(manifest, config)) is not None and older.ends is None
    (tmp_path / "chat.jinja").unlink()
    with pytest.raises(ConfigError, match=r"model\.chat_template"):
        prepare(config)


def test_an_export_is_asked_for_thoughts_that_were_trained(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model", "qwen3", 1, vocab=300)
    rows = [row(i) for i in range(4)]
    for r in rows:
        r["responses"][0]["reasoning"] = "Paint dries slowly."  # type: ignore[index]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = recipe(str(tmp_path / "model"), str(tmp_path / "d.jsonl"))
    prepared = prepare(config)
    files = RunDir(tmp_path / "runs" / "x")
    files.begin(config, prepared.facts, remembered(prepared))
    recalled = recall(files.read_manifest(), config)
    assert prepared.thoughts and recalled is not None and recalled.thoughts
    assert set(prepared.facts["chat_template"]) == {"hash"}, "runs of versions that kept no more go on"
    assert exported(config, thoughts=True).init_kwargs["template_kwargs"] == {}
    dropped = config.model_copy(update={"data": config.data.model_copy(update={"reasoning": "drop"})})
    assert not prepare(dropped).thoughts and prepare(dropped).facts["data"] != prepared.facts["data"]
    assert "template_kwargs" not in exported(dropped, thoughts=False).init_kwargs
