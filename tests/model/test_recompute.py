"""Tiles of MLPs and activations in the host's memory change nothing but memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig
from transformers.models.lfm2.modeling_lfm2 import Lfm2DecoderLayer, Lfm2MLP

from dpeer import config
from dpeer.config import Model
from dpeer.data.packing import build_pack
from dpeer.data.tokenize import TokenTree
from dpeer.errors import ConfigError
from dpeer.model import on_host
from dpeer.model.lm import attention_kernel, build_lm
from dpeer.model.on_host import PIECE, OnHost, pack, unpack
from dpeer.model.probe import probe
from dpeer.model.recompute import refuse_untiled
from dpeer.model.tiles import dense_mlps
from dpeer.toyworld.model import tiny_model
from tests.model.test_tree_attention import coefficients, gradients, relative, warm_adapters

LORA = {"lora": config.Lora(rank=4)}
DORA = {"lora": config.Lora(rank=4, dora=True)}
ROUNDING = 3e-6
"""Of sums in another order, relative to a parameter's largest gradient, in fp32."""
Step = tuple[Tensor, dict[str, Tensor]]


def step(folder: Path, trees: list[TokenTree], **model: Any) -> Step:
    """Log-probabilities and gradients."""
    spec = Model(path=str(folder), gradient_checkpointing=True, **({"dtype": "fp32"} | model))
    lm = build_lm(spec, seed=1)
    if spec.lora:
        warm_adapters(lm)
    packed = build_pack(trees, range(len(trees)))
    logps = lm(packed)
    (logps * coefficients(packed)).sum().backward()
    with torch.no_grad():
        assert relative(lm(packed), logps) < 1e-6
    return logps.detach(), gradients(lm.model)


def apart(found: Step, expected: Step) -> float:
    assert set(found[1]) == set(expected[1]) and len(found[1]) > 7
    return max(relative(found[0], expected[0]), *(relative(found[1][k], v) for k, v in expected[1].items()))


@pytest.mark.parametrize("model", [{}, LORA, DORA], ids=["full", "lora", "dora"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_5", "lfm2"])
def test_tiles_of_mlps_change_nothing(
    checkpoint: Callable[[str], Path], trees: list[TokenTree], name: str, model: dict[str, Any]
) -> None:
    """10 tokens to a tile, of which the last has fewer."""
    expected = step(checkpoint(name), trees, **model)
    assert apart(step(checkpoint(name), trees, mlp_tile=10, **model), expected) < ROUNDING


def test_adapters_elsewhere_and_separate_sequences_are_tiled_alike(
    checkpoint: Callable[[str], Path], trees: list[TokenTree]
) -> None:
    for model in ({"lora": config.Lora(rank=4, targets=("q_proj", "v_proj"))}, {"layout": "sequences"}):
        expected = step(checkpoint("qwen3"), trees, **model)
        assert apart(step(checkpoint("qwen3"), trees, mlp_tile=10, **model), expected) < ROUNDING


def test_gradients_of_many_tiles_are_summed_in_fp32(checkpoint: Callable[[str], Path], trees: list[TokenTree]) -> None:
    """In bf16 a hundred tiles would lose what one product over all tokens keeps."""
    exact = step(checkpoint("llama"), trees)[1]
    whole = step(checkpoint("llama"), trees, dtype="bf16")[1]
    tiled = step(checkpoint("llama"), trees, dtype="bf16", mlp_tile=1)[1]

    def off(found: dict[str, Tensor]) -> float:
        name = "model.layers.1.mlp.up_proj.weight"
        return float((found[name].float() - exact[name]).norm() / exact[name].norm())

    print(f"bf16 against fp32: {off(whole):.4f} in one, {off(tiled):.4f} in tiles of a token")
    assert off(tiled) < 1.2 * off(whole)


def test_a_tile_is_computed_twice_and_its_weights_get_one_gradient(
    checkpoint: Callable[[str], Path], trees: list[TokenTree]
) -> None:
    """Forward and backward, as without tiles: recomputation of the layer ends before its MLP."""
    packed = build_pack(trees, range(len(trees)))
    for tile, tiles in ((None, 1), (10, -(-packed.tokens // 10))):
        lm = build_lm(Model(path=str(checkpoint("llama")), dtype="fp32", gradient_checkpointing=True, mlp_tile=tile), 1)
        mlp, counts = lm._backbone[0].layers[0].mlp, [0, 0]
        weight: Any = mlp.gate_proj.weight

        def count(which: int, counts: list[int] = counts) -> Callable[..., None]:
            return lambda *_: counts.__setitem__(which, counts[which] + 1)

        mlp.gate_proj.register_forward_hook(count(0))
        weight.register_post_accumulate_grad_hook(count(1))
        lm(packed).sum().backward()
        assert counts == [2 * tiles, 1]


@pytest.mark.parametrize("model", [{}, LORA, {"mlp_tile": 10}, {"dtype": "bf16"}], ids=str)
@pytest.mark.parametrize("name", ["qwen3", "gemma3", "lfm2"])
def test_layers_inputs_alone_go_to_the_host(
    checkpoint: Callable[[str], Path],
    trees: list[TokenTree],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    model: dict[str, Any],
) -> None:
    moved: list[OnHost] = []
    monkeypatch.setattr(on_host, "pack", lambda tensor: (moved.append(pack(tensor)), moved[-1])[1])
    expected = step(checkpoint(name), trees, **model)
    assert not moved
    found = step(checkpoint(name), trees, offload_activations=True, **model)
    layers, tokens, size = 2, build_pack(trees, range(len(trees))).tokens, 2 if model.get("dtype") == "bf16" else 4
    assert [x.bytes for x in moved] == layers * [tokens * 48 * size]
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(found[1][k], v) for k, v in expected[1].items())


def test_a_tensor_comes_back_in_pieces_as_it_was() -> None:
    tensor = torch.randn(3, PIECE // 8, 2, dtype=torch.bfloat16).transpose(0, 1)
    kept = pack(tensor)
    assert len(kept.pieces) == 2 and max(p.nbytes for p in kept.pieces) == PIECE and kept.bytes == tensor.nbytes
    assert torch.equal(unpack(kept), tensor)
    nothing = unpack(pack(tensor.to("meta")))
    assert nothing.is_meta and nothing.shape == tensor.shape and not pack(tensor.to("meta")).pieces


@pytest.mark.parametrize("option", [{"offload_activations": True}, {"mlp_tile": 4096}])
def test_options_without_recomputation_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"set model.gradient_checkpointing=true, or leave it out"):
        Model(path="m", **option)


def test_experts_are_left_as_they_are(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    folder = tiny_model(tmp_path / "moe", "qwen3_moe", 1, vocab=300, **experts)
    with pytest.raises(ConfigError, match=r"mlp_tile = 8: model .* has no dense MLP .*mlp_tile=null"):
        build_lm(Model(path=str(folder), dtype="fp32", gradient_checkpointing=True, mlp_tile=8), 1)
    mixed = tiny_model(tmp_path / "mixed", "qwen3_moe", 1, vocab=300, mlp_only_layers=[0], **experts)
    lm = build_lm(Model(path=str(mixed), dtype="fp32", gradient_checkpointing=True, mlp_tile=8), 1)
    assert dense_mlps(lm.model) == [lm._backbone[0].layers[0].mlp]


def test_a_model_that_the_tests_do_not_name_is_tried(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its MLP is exact in tiles, and would not be if it looked at other tokens."""
    shape = AutoConfig.from_pretrained(checkpoint("lfm2"))
    monkeypatch.setattr("dpeer.model.recompute.exactness", probe)  # whose results are not kept
    refuse_untiled(shape, "m", 8)
    own = Lfm2MLP.forward
    monkeypatch.setattr(Lfm2MLP, "forward", lambda mlp, x: own(mlp, x) + x.mean(-2, keepdim=True))
    with pytest.raises(
        ConfigError, match=r"mlp_tile = 8: model m \(type 'lfm2'\) is not computed exactly in tiles: .*off"
    ):
        refuse_untiled(shape, "m", 8)
    refuse_untiled(shape, "m", None)


def test_layers_that_take_hidden_states_by_name_are_found_before_the_model_is_built(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A score, which trains nothing, would not meet them."""
    spec = Model(path=str(checkpoint("lfm2")), dtype="fp32", gradient_checkpointing=True, offload_activations=True)
    state = torch.random.get_rng_state()
    attention_kernel(spec, torch.device("cpu"))
    assert torch.equal(torch.random.get_rng_state(), state)
    own = Lfm2DecoderLayer.__call__
    monkeypatch.setattr(
        Lfm2DecoderLayer, "__call__", lambda layer, hidden, **more: own(layer, hidden_states=hidden, **more)
    )
    with pytest.raises(ConfigError, match=r"offload_activations = true: layers of this model take hidden states by na"):
        attention_kernel(spec, torch.device("cpu"))
    attention_kernel(spec.model_copy(update={"offload_activations": False}), torch.device("cpu"))
