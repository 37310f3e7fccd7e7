"""What is known of a model family, and what follows when nothing is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from transformers import AutoConfig

from dpeer import config
from dpeer.data.layout import Layout
from dpeer.data.packing import build_pack
from dpeer.data.tokenize import TokenTree
from dpeer.estimate.few_layers import FewLayers
from dpeer.estimate.footprint import _follow, _of_pack, count_activations, count_weights
from dpeer.model.families import attending_layers, idle_parameters, logits_shape, state_size
from dpeer.model.flops import Lengths, forward_flops
from dpeer.model.lm import layer_shape
from dpeer.model.logprob import Shape
from dpeer.model.miniature import alike, miniature, with_layers

SPEC = config.Model(path="model", dtype="fp32")


def test_a_family_that_is_not_listed_is_counted() -> None:
    shape = AutoConfig.for_model("olmo2", hidden_size=64, intermediate_size=96, num_hidden_layers=3, vocab_size=100)
    weights = count_weights(SPEC, shape)
    norms = 2 * 64 + 2 * 64  # of queries and keys, after attention and after the feed-forward part
    assert weights.layer == 4 * 64 * 64 + 3 * 64 * 96 + norms
    assert weights.total == 3 * weights.layer + 2 * 100 * 64 + 64
    assert weights.attention_width == 64 and weights.idle == 0


def test_layers_that_keep_a_state_attend_to_nothing() -> None:
    """Three products per token and element of a state, two FLOPs each; attention in one layer of four."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "vocab_size": 100, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
    shape = AutoConfig.for_model("qwen3_5_text", linear_key_head_dim=8, linear_value_head_dim=16, **sizes, **heads)
    weights = count_weights(SPEC, shape)
    assert (weights.attending, weights.state) == (1, 3 * 4 * 8 * 16)
    one, two = (forward_flops(weights, [Lengths(n, (1,), ())])[0] for n in (10, 20))
    inner = 2 * (weights.total - weights.embedding - (0 if weights.tied else weights.head)) + 6 * weights.state
    assert two - one == inner * 10 + 4 * 64 * ((20**2 - 10**2) / 2 + (20 - 10))
    lfm2 = AutoConfig.for_model("lfm2", layer_types=["conv", "full_attention"], num_hidden_layers=2)
    assert (attending_layers(lfm2), state_size(lfm2), attending_layers(AutoConfig.for_model("llama"))) == (1, 0, 32)


@pytest.mark.parametrize("kind", ["kimi_linear", "glm5_next_text"])
def test_states_whose_keys_and_values_are_of_one_size_are_counted(kind: str) -> None:
    shape = AutoConfig.for_model(
        kind, num_hidden_layers=4, linear_num_heads=6, linear_head_dim=10, mlp_layer_types=["dense"] * 4,
        layer_types=["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    )  # fmt: skip
    assert (state_size(shape), attending_layers(shape)) == (3 * 6 * 10 * 10, 1)


def test_experts_that_a_token_does_not_meet_are_idle() -> None:
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 3, "vocab_size": 100}
    shape = AutoConfig.for_model("qwen3_moe", num_experts=8, num_experts_per_tok=2, head_dim=16, **sizes)
    assert count_weights(SPEC, shape).idle == 3 * 6 * 3 * 64 * 32  # layers, idle experts, matrices
    assert idle_parameters(AutoConfig.for_model("llama"), [(8, 4, 4)]) == 0


@pytest.mark.parametrize("lora", [None, config.Lora(rank=4)])
@pytest.mark.parametrize("layout", ["tree", "sequences"])
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_activations_are_counted_in_both_layouts(family: str, lora: config.Lora | None, layout: Layout) -> None:
    """On the meta device no value can be asked for."""
    shape = miniature(AutoConfig.for_model(family))
    found = count_activations(SPEC.model_copy(update={"lora": lora}), shape, 60, (20, 20, 20), layout)
    assert found.layer[0] > 0 and found.layers[0] > 0


LFM2 = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "vocab_size": 100,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def lfm2(attending: int, convolving: int) -> Any:
    kinds = ["conv"] * convolving + ["full_attention"] * attending
    return AutoConfig.for_model("lfm2", layer_types=kinds, num_hidden_layers=len(kinds), **LFM2)


@pytest.mark.parametrize("lora", [None, config.Lora(rank=4), config.Lora(rank=4, targets=("q_proj", "v_proj"))])
def test_activations_of_hybrid_models_are_those_of_each_kind_of_layer(lora: config.Lora | None) -> None:
    """By following models with all their layers: of the same kinds, whatever they are laid on."""
    spec = SPEC.model_copy(update={"lora": lora})
    pack = build_pack([TokenTree(0, (0,) * 200, ((0,) * 20,) * 8, (), 0, ())], [0])

    def saved(shape: Any) -> int:
        few = FewLayers.of(spec, shape, "tree_footprint_gather")
        order = [*range(shape.num_hidden_layers)][::-1]  # attention first: gradients pass through all
        return _follow(few.model(order), few, "tree", pack, 1)["saved"]

    conv, attention = saved(lfm2(2, 2)) - saved(lfm2(2, 1)), saved(lfm2(3, 1)) - saved(lfm2(2, 1))
    assert attention > 1.05 * conv  # gathered keys and values
    few = FewLayers.of(spec, lfm2(2, 5), "tree_footprint_gather")
    found = _of_pack(few, few.base(), "tree", pack, 1)
    assert found["layer"] * 7 == pytest.approx(5 * conv + 2 * attention, rel=1e-9)


def test_an_adapter_of_some_layers_is_planned(tmp_path: Path) -> None:
    """Layers 2 and 3 of it, and modules by their numbers: neither is in a model of two layers."""
    shape = AutoConfig.for_model("llama", hidden_size=64, intermediate_size=96, num_hidden_layers=4, vocab_size=100)
    described: dict[str, Any] = {"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}
    some = {"target_modules": ["q_proj"], "layers_to_transform": [2, 3], "layers_pattern": "layers"}
    named = {"target_modules": ["model.layers.3.self_attn.q_proj"]}
    plain = count_activations(
        SPEC.model_copy(update={"lora": config.Lora(rank=4, targets=("q_proj",))}), shape, 60, (20,)
    )
    for i, which in enumerate((some, named)):
        LoraConfig(**described | which).save_pretrained(tmp_path / str(i))
        spec = SPEC.model_copy(update={"path": str(tmp_path), "lora": config.Lora(path=str(tmp_path / str(i)))})
        (tmp_path / "config.json").write_text(shape.to_json_string())
        assert count_activations(spec, shape, 60, (20,)) == plain


def test_a_layer_is_the_largest_and_leaves_are_of_every_class() -> None:
    """One dense layer before those with experts: what is gathered at once is one with experts."""
    shape = AutoConfig.for_model(
        "deepseek_v3", hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=3,
        first_k_dense_replace=1, n_routed_experts=8, num_attention_heads=2, num_key_value_heads=2, vocab_size=100,
        q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, pad_token_id=None,
    )  # fmt: skip
    found = layer_shape(shape)
    assert found.parameters > 3 * 64 * 32 * 8 and len(found.classes) == 1


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
