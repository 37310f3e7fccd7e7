"""The generation config of an export: it stops where responses end, whatever the base's says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig, Qwen3Config

from dpeer.training.generation import generation

TINY = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "vocab_size": 50}


def made(folder: Path, base: Any, ends: set[int], **shape: Any) -> tuple[dict[str, Any], list[str]]:
    """What lies in the exported folder, and what was said."""
    if base is not None:
        (folder / "generation_config.json").write_text(base if isinstance(base, str) else json.dumps(base))
    config, notes = generation(str(folder), None, Qwen3Config(**(TINY | shape)), ends)
    config.save_pretrained(folder / "out")
    read = GenerationConfig.from_pretrained(folder / "out")
    assert read.eos_token_id == config.eos_token_id
    return json.loads((folder / "out" / "generation_config.json").read_text()), notes


@pytest.mark.parametrize(
    ("base", "expected", "said"),
    [
        ({"temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 0], "pad_token_id": 0}, [2, 0], ["temperature, top_p"]),
        ({"top_k": 20, "eos_token_id": 2, "pad_token_id": 0}, 2, ["top_k"]),
        ({"do_sample": True, "temperature": 0.6, "eos_token_id": 2, "pad_token_id": 0}, 2, []),
        ({"eos_token_id": 7, "pad_token_id": 0, "num_beams": 1, "length_penalty": 2.0}, [7, 2], ["length_pen", "2"]),
        ({"pad_token_id": 0}, 2, []),
    ],
    ids=["flags without sampling", "one flag", "sampling", "another end", "no end"],
)
def test_ends_of_turn_are_in_the_export(tmp_path: Path, base: dict[str, Any], expected: Any, said: list[str]) -> None:
    found, notes = made(tmp_path, base, {2})
    assert found["eos_token_id"] == expected and found["pad_token_id"] == 0
    assert len(notes) == len(said) and all(part in note for part, note in zip(said, notes, strict=True))
    assert found.get("temperature") == (0.6 if base.get("do_sample") else None)


@pytest.mark.parametrize("base", [None, "{", "[]", '{"eos_token_id": "two", "top_p": "much"}'])
def test_a_base_without_a_readable_config_ends_by_its_config_json(tmp_path: Path, base: str | None) -> None:
    found, _ = made(tmp_path, base, {2}, eos_token_id=5, pad_token_id=3)
    stops = found["eos_token_id"]
    assert 2 in (stops if isinstance(stops, list) else [stops])
    if base != '{"eos_token_id": "two", "top_p": "much"}':
        assert (stops, found["pad_token_id"]) == ([5, 2], 3)
