"""What a model's small files say, against files written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from dpeer.data.facts import ModelFacts
from dpeer.errors import ConfigError
from dpeer.model.shape import model_facts, positions


def write(folder: Path, config: dict[str, Any], tensors: dict[str, int] | None = None, **files: Any) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    if tensors:
        save_file({k: np.zeros((n, 4), np.float32) for k, n in tensors.items()}, folder / "model.safetensors")
    return str(folder)


def test_facts_of_a_plain_model(tmp_path: Path) -> None:
    config = {"vocab_size": 90, "max_position_embeddings": 64, "eos_token_id": 1}
    path = write(tmp_path, config, {"model.embed_tokens.weight": 80, "lm_head.weight": 70})
    assert model_facts(path) == ModelFacts(path, 80, 64, frozenset({1}), None)
    write(tmp_path, config, generation_config={"eos_token_id": [3, 4]})
    assert model_facts(path) == ModelFacts(path, 80, 64, frozenset({3, 4}), None)


def test_facts_of_shards_and_of_the_text_part(tmp_path: Path) -> None:
    name = "model.language_model.embed_tokens.weight"
    inner = {"vocab_size": 95, "max_position_embeddings": 32, "quantization_config": {"quant_method": "fp8"}}
    path = write(tmp_path, {"text_config": inner, "vocab_size": 7}, {name: 88})
    (tmp_path / "model.safetensors").rename(tmp_path / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", name: "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert model_facts(path) == ModelFacts(path, 88, 32, frozenset(), "fp8")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"max_position_embeddings": 4096}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 16384),
        (
            {
                "max_position_embeddings": 40960,
                "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 1024,
                "rope_parameters": {"full_attention": {"factor": 8.0}, "sliding_attention": {"rope_type": "default"}},
            },
            8192,
        ),
        ({"max_position_embeddings": 8, "rope_scaling": {"factor": "x"}}, 8),
    ],
)
def test_positions_with_rope_scaling(fields: dict[str, Any], expected: int | None) -> None:
    assert positions(fields) == expected


def test_no_config_and_a_broken_one(tmp_path: Path) -> None:
    assert model_facts(str(tmp_path)) is None
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        model_facts(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 40)
    (tmp_path / "config.json").write_text('{"vocab_size": 9}')
    assert model_facts(str(tmp_path)) == ModelFacts(str(tmp_path), 9)
