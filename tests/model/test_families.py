"""What is known of a model family, and what follows when nothing is."""

from __future__ import annotations

import pytest
from transformers import AutoConfig

from dpeer import config
from dpeer.errors import ConfigError
from dpeer.estimate.footprint import count_weights
from dpeer.model import families
from dpeer.model.families import Family, family_of, refuse_unsupported, register

SPEC = config.Model(path="model", dtype="fp32")


def test_a_registered_family_is_accepted_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    shape = AutoConfig.for_model("olmo2", hidden_size=64, intermediate_size=96, num_hidden_layers=3, vocab_size=100)
    for ask in (lambda: family_of(shape), lambda: count_weights(SPEC, shape)):
        with pytest.raises(ConfigError, match="model type 'olmo2' is not in the tested families llama, qwen2"):
            ask()
    register(Family("olmo2"))
    refuse_unsupported(shape, "some/model")
    weights = count_weights(SPEC, shape)
    norms = 2 * 64 + 2 * 64  # of queries and keys, after attention and after the feed-forward part
    assert weights.layer == 4 * 64 * 64 + 3 * 64 * 96 + norms
    assert weights.total == 3 * weights.layer + 2 * 100 * 64 + 64
    assert weights.attention_width == 64


def test_a_model_of_fewer_layers_has_fewer_entries_per_layer() -> None:
    shape = AutoConfig.for_model("gemma3_text", num_hidden_layers=7)
    fields = family_of(shape).with_layers(shape, 2)
    assert fields["num_hidden_layers"] == len(fields["layer_types"]) == 2
    assert fields["layer_types"] == shape.layer_types[:2]
