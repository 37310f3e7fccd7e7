"""What is known of a model family, and what follows when nothing is."""

from __future__ import annotations

from transformers import AutoConfig

from dpeer import config
from dpeer.estimate.footprint import count_weights
from dpeer.model.families import idle_parameters, logits_shape
from dpeer.model.logprob import Shape
from dpeer.model.miniature import alike, with_layers

SPEC = config.Model(path="model", dtype="fp32")


def test_a_family_that_is_not_listed_is_counted() -> None:
    shape = AutoConfig.for_model("olmo2", hidden_size=64, intermediate_size=96, num_hidden_layers=3, vocab_size=100)
    weights = count_weights(SPEC, shape)
    norms = 2 * 64 + 2 * 64  # of queries and keys, after attention and after the feed-forward part
    assert weights.layer == 4 * 64 * 64 + 3 * 64 * 96 + norms
    assert weights.total == 3 * weights.layer + 2 * 100 * 64 + 64
    assert weights.attention_width == 64 and weights.idle == 0


def test_experts_that_a_token_does_not_meet_are_idle() -> None:
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 3, "vocab_size": 100}
    shape = AutoConfig.for_model("qwen3_moe", num_experts=8, num_experts_per_tok=2, head_dim=16, **sizes)
    assert count_weights(SPEC, shape).idle == 3 * 6 * 3 * 64 * 32  # layers, idle experts, matrices
    assert idle_parameters(AutoConfig.for_model("llama"), [(8, 4, 4)]) == 0


def test_logits_are_shaped_by_the_config() -> None:
    assert logits_shape(AutoConfig.for_model("llama")) == Shape()
    assert logits_shape(AutoConfig.for_model("granite", logits_scaling=4.0)) == Shape(0.25)
    assert logits_shape(AutoConfig.for_model("cohere2", logit_scale=0.5)) == Shape(0.5)
    assert logits_shape(AutoConfig.for_model("gemma2")) == Shape(1.0, 30.0)


def test_a_model_of_fewer_layers_has_fewer_entries_per_layer() -> None:
    shape = AutoConfig.for_model("gemma3_text", num_hidden_layers=7)
    fields = with_layers(shape, alike(shape, 2))
    assert fields["num_hidden_layers"] == len(fields["layer_types"]) == 2
    assert fields["layer_types"] == shape.layer_types[:2]
    assert alike(shape, 9) == list(range(7))
    assert with_layers(shape, [5, 6])["layer_types"] == ["full_attention", "sliding_attention"]
