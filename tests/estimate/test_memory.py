"""The memory plan: by hand, against DeepSpeed's estimator, against a real ZeRO-3 step, and how it must move."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from dpeer.config import Config
from dpeer.estimate.footprint import (
    Activations,
    Weights,
    backward_buffers,
    count_activations,
    count_weights,
)
from dpeer.estimate.memory import Zero, host, largest_budget, model_states, offloaded, per_gpu
from dpeer.model.four_bits import BYTES as FOUR_BITS
from dpeer.model.lm import LayerShape
from dpeer.toyworld.model import tiny_model
from dpeer.training.engine import sized
from dpeer.training.zero_file import deepspeed_config

LLAMA_8B: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
LLAMA_70B = LLAMA_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}


def recipe(path: str = "model", deepspeed: str = "zero3", **model: Any) -> Config:
    offload = "offload" in deepspeed
    return Config.model_validate(
        {
            "name": "x",
            "model": {"path": path} | model,
            "data": {"train": "d.jsonl"},
            "objective": {"kind": "sft"},
            "training": {
                "steps": 5,
                "records_per_step": 8,
                "tokens_per_pack": 2000,
                "optimizer": {"name": "cpu_adam" if offload else "adamw"},
            },
            "cluster": {"deepspeed": deepspeed},
        }
    )


def zero(config: Config) -> Zero:
    """For Llama 8B, whose layer and head have so many parameters."""
    settings = deepspeed_config(config.cluster.deepspeed, config, trained=True)
    return Zero.of(sized(settings, LayerShape(("layer",), 218_112_000, 525_336_576), whole=True))


def test_weights_by_hand() -> None:
    weights = count_weights(recipe().model, AutoConfig.for_model("llama", **LLAMA_8B))
    attention, mlp, norms = 2 * 4096**2 + 2 * 4096 * 1024, 3 * 4096 * 14336, 2 * 4096
    assert weights.layer == attention + mlp + norms
    assert weights.total == weights.trained == 32 * weights.layer + 2 * 128256 * 4096 + 4096 == 8_030_261_248
    assert weights.head == weights.embedding == weights.largest_module == 128256 * 4096
    assert weights.shard(1) == weights.total and weights.shard(7) >= weights.total / 7
    assert weights.persistent(4096) == 65 * 4096


def test_activations_by_hand() -> None:
    """Kept per token of a Llama layer in bf16: two norms, queries, output, gathered keys and values, MLP."""
    shape = AutoConfig.for_model("llama", **LLAMA_8B)
    kept = count_activations(recipe().model, shape, 300, [100] * 5).layer
    tokens, keys = 300 + 5 * 99, 300 + 5 * (300 + 99)
    h, kv, inner = 4096, 1024, 14336
    norm = 4 * h + 2 * h + 2 * h  # the input in fp32, the normalised input, the output
    by_hand = 2 * norm + 2 * 2 * h + 2 * 2 * kv * keys / tokens + 4 * 2 * inner
    assert kept[0] == pytest.approx(by_hand, rel=0.005)
    recomputed = count_activations(recipe(gradient_checkpointing=True).model, shape, 300, [100] * 5).layer
    assert recomputed == pytest.approx((2 * h, 0))


def test_activations_on_the_host_and_tiles_by_hand() -> None:
    """Layers keep nothing on the GPU; beside the rest of a layer, an MLP needs what it computes of one tile, and its
    weights' gradients: a tile's in bf16, their sum in fp32."""
    shape = AutoConfig.for_model("llama", **LLAMA_8B)
    plain, away, tiled = (
        count_activations(recipe(gradient_checkpointing=True, **spared).model, shape, 3000, [300] * 5)
        for spared in ({}, {"offload_activations": True}, {"mlp_tile": 1024})
    )
    h, inner = 4096, 14336
    assert (plain.layer, away.layer, tiled.layer) == (pytest.approx((2 * h, 0)), pytest.approx((0, 0)), plain.layer)
    assert away.layers == pytest.approx(plain.layers, rel=0.01)
    intermediates = 4 * 2 * inner  # gate, its activation, up, their product
    print(plain, tiled, sep="\n")
    assert tiled.layers[0] < 0.8 * plain.layers[0] and tiled.mlp[0] < plain.layers[0] - intermediates
    gradients = 3 * h * inner * (4 + 2)
    assert gradients + 1024 * intermediates < tiled.mlp[1] < 1.3 * gradients + 2 * 1024 * intermediates
    assert plain.mlp == away.mlp == (0, 0)
    config = recipe(gradient_checkpointing=True, offload_activations=True)
    weights = count_weights(config.model, shape)
    assert offloaded(config, weights, 1000) == 32 * 2 * h * 1000 and offloaded(recipe(), weights, 1000) == 0
    held, none = (host(c, weights, zero(c), 8, 8, 1000).each_node for c in (config, recipe()))
    (part,) = (p for p in held if "activations" in p.name)
    assert part.low == 8 * 32 * 2 * h * 1000 and part.high == part.low + 8 * 32 * 2**24
    assert len(held) == len(none) + 1


@pytest.mark.parametrize(
    ("heads", "prompt", "gib"), [(32, 30_000, 3.3), (32, 60_000, 6.5), (64, 30_000, 6.6), (64, 60_000, 13.0)]
)
def test_buffers_of_the_kernels_backward_pass(heads: int, prompt: int, gib: float) -> None:
    """Five responses of 500: gradients of gathered keys and values per query head, and of the queries in fp32."""
    tokens, keys = prompt + 5 * 500, prompt + 5 * (prompt + 500)
    query, key = (torch.empty(n, h, 128, dtype=torch.bfloat16, device="meta") for n, h in ((tokens, heads), (keys, 8)))
    size = sum(x.nbytes for x in backward_buffers(query, key, 6)) / 2**30
    by_hand = (2 * 2 * keys + 4 * (tokens + 6 * 128)) * heads * 128 / 2**30
    assert size == pytest.approx(by_hand, rel=0.01) == pytest.approx(gib, rel=0.03)
    ungrouped = sum(x.nbytes for x in backward_buffers(key, key, 6))
    assert ungrouped == pytest.approx(4 * (keys + 6 * 128) * 8 * 128, rel=0.01)


def test_many_responses_to_long_prompts_cost_memory_unless_nothing_is_gathered() -> None:
    """The layers' peak is attention's: inputs, output, gathered keys and values, all gradients, and the buffers."""
    shape = AutoConfig.for_model("llama", **LLAMA_8B | {"vocab_size": 1000})
    gather, cascade = (
        count_activations(recipe(gradient_checkpointing=True, attention=a).model, shape, 2000, [50] * 20).layers[0]
        for a in ("gather", "cascade")
    )
    tokens, keys = 2000 + 20 * 49, 2000 + 20 * (2000 + 49)
    copies = (
        keys / tokens * (2 * 2 * 1024 + 2 * 2 * 1024 + 2 * 2 * 4096)
    )  # keys and values: gathered, gradients, per head
    queries = (1 + 21 * 128 / tokens) * 4 * 4096 + 3 * 2 * 4096
    assert copies + queries < gather < 1.15 * (copies + queries)
    assert cascade < 0.6 * gather  # the MLP needs most


def test_head_memory_follows_its_chunk() -> None:
    """On a GPU 2048 rows by default: one table of logits in fp32, and what the backward pass takes of it in bf16."""
    shape = AutoConfig.for_model("llama", **LLAMA_8B | {"hidden_size": 64, "vocab_size": 50_000})
    fixed = [
        count_activations(recipe(**model).model, shape, 100, [300] * 5).head[1] for model in ({}, {"head_chunk": 256})
    ]
    assert (fixed[0] - fixed[1]) / (1792 * 50_000) == pytest.approx(4 + 2, rel=0.05)


def test_model_states_by_hand() -> None:
    """One tensor of 1000 on 3 ranks is 334 each: 2 + 4 + 8 + 4 bytes an element; tensors of 10 are kept whole."""
    weights = Weights({(1000, True): 1, (10, True): 2}, 1, 1000, 1000, 1000, 1000, True, 10, 10)
    config = recipe()
    nothing = Activations((0, 0), (0, 0), (0, 0), (0, 0))
    parts = {p.name: p.high for p in per_gpu(config, weights, nothing, zero(config), 3, 0).resident}
    shard = 334 + 2 * 4
    assert parts["weights, ZeRO-3 shard"] == 2 * shard
    assert parts["master weights, fp32 shard"] == parts["gradients, fp32 shard"] == 4 * shard
    assert parts["Adam moments, fp32 shard"] == 8 * shard
    assert parts["small weights kept whole"] == 2 * 1020  # all lie below the threshold of zero3.json


@pytest.mark.parametrize(("dtype", "masters"), [("bf16", 4), ("fp32", 0)])
@pytest.mark.parametrize("ranks", [1, 8])
def test_plain_states_by_hand(dtype: str, masters: int, ranks: int) -> None:
    """Whole on every rank; in fp32 the weights themselves are what the optimizer updates. No buffers."""
    config = recipe(dtype=dtype)
    weights = Weights({(1000, True): 3, (700, False): 1}, 1, 1000, 1000, 1000, 1000, True, 10, 10)
    line = (0.0, 50.0)
    plan = per_gpu(config, weights, Activations(line, line, line, line), Zero.plain(), ranks, 0)
    size = 2 if dtype == "bf16" else 4
    states = 3700 * size + 3000 * (masters + 8 + 4)
    assert sum(p.high for p in plan.resident) == states == model_states(config, weights, Zero.plain(), ranks, 1)[0]
    assert {name: sum(p.high for p in parts) for name, parts in plan.phases.items()} == {
        "loss and head": 100,
        "backward of the layers": 100 + 1000 * size,  # of the tied head, until the embedding's is there
        "backward of the embedding": 50 + 1000 * size,
    }


def test_a_reference_beneath_adapters_takes_no_memory() -> None:
    weights = Weights({(1000, False): 3, (10, True): 1}, 1, 1000, 1000, 1000, 1000, True, 10, 10)
    nothing = Activations((0, 0), (0, 0), (0, 0), (0, 0))

    def beside(**model: Any) -> float:
        tree = recipe(**({"lora": {"rank": 1}} | model)).model_dump()
        tree["objective"]["kind"] = "preference"
        tree["cluster"]["reference"] = "colocated"
        parts = per_gpu(Config.model_validate(tree), weights, nothing, Zero.plain(), 1, 0).resident
        return sum(p.high for p in parts if p.name == "reference beside the policy")

    assert beside() == 0 and beside(reference_path="another") == 6000
    assert beside(lora={"path": "adapter"}) == 6020  # the base, and the adapter as it was at the start
    assert beside(reference_path="another", load_in_4bit=True) == 2000 + 2000 * FOUR_BITS


def test_bytes_of_a_weight_in_4_bits() -> None:
    """NF4 in blocks of 64, whose scales have 8 bits and, in groups of 256, one of 32 bits: 4.127 bits in all."""
    assert pytest.approx(4.127, abs=5e-4) == FOUR_BITS * 8


@pytest.mark.parametrize(("shape", "nodes", "gpus"), [(LLAMA_8B, 1, 8), (LLAMA_70B, 8, 8), (LLAMA_70B, 3, 5)])
@pytest.mark.parametrize("offload", [False, True])
def test_agrees_with_deepspeed(shape: dict[str, Any], nodes: int, gpus: int, offload: bool) -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

    config = recipe(deepspeed="zero3_offload" if offload else "zero3")
    weights = count_weights(config.model, AutoConfig.for_model("llama", **shape))
    mine, mine_host = model_states(config, weights, zero(config), nodes * gpus, gpus)
    theirs_host, theirs, _ = estimate_zero3_model_states_mem_needs(
        weights.total, weights.largest_module, gpus, nodes, offload, False, True, additional_buffer_factor=1.0
    )
    assert mine == pytest.approx(theirs, rel=0.05)
    if offload:
        assert mine_host == pytest.approx(theirs_host, rel=0.05)


WEIGHTS = st.builds(
    lambda layers, layer, table, tied: Weights(
        {(layer, True): layers, (table, True): 1 if tied else 2}, layers, layer, table, table, table, tied, 1000, 64
    ),
    st.integers(1, 100), st.integers(1000, 10**9), st.integers(1000, 10**9), st.booleans(),
)  # fmt: skip
LINES = st.tuples(st.floats(0, 1e6), st.floats(0, 1e9))


@settings(deadline=None, max_examples=50)
@given(
    weights=WEIGHTS,
    activations=st.builds(Activations, LINES, LINES, LINES, LINES),
    name=st.sampled_from(["zero3", "zero3_hpz", "zero3_offload"]),
    tokens=st.integers(256, 10**5),
)
def test_more_gpus_never_need_more_and_more_tokens_never_less(
    weights: Weights, activations: Activations, name: str, tokens: int
) -> None:
    config = recipe(deepspeed=name)
    by_ranks = [per_gpu(config, weights, activations, zero(config), n, tokens).high for n in (1, 2, 3, 7, 8, 64)]
    assert all(a >= b for a, b in pairwise(by_ranks))
    by_tokens = [per_gpu(config, weights, activations, zero(config), 8, n) for n in (tokens, 2 * tokens, 3 * tokens)]
    assert all(a.high <= b.high for a, b in pairwise(by_tokens))
    assert all(m.low <= m.high and m.high == pytest.approx(sum(p.high for p in m.parts)) for m in by_tokens)


def test_largest_budget_is_the_last_that_fits() -> None:
    config = recipe(gradient_checkpointing=True)
    shape = AutoConfig.for_model("llama", **LLAMA_8B)
    weights = count_weights(config.model, shape)
    activations = count_activations(config.model, shape, 300, [200] * 4)
    usable = 79.1 * 2**30
    budget = largest_budget(config, weights, activations, zero(config), 8, usable)
    assert budget > 0 and budget % 256 == 0
    assert per_gpu(config, weights, activations, zero(config), 8, budget).high <= usable
    assert per_gpu(config, weights, activations, zero(config), 8, budget + 256).high > usable
    assert largest_budget(config, weights, activations, zero(config), 1, usable) == 0


def test_host_of_the_export_by_hand() -> None:
    weights = Weights({(10**9, True): 70}, 1, 1, 1, 1, 1, True, 1, 1)
    weights = replace(weights, layer=856 * 10**6, head=1050 * 10**6)
    export = host(recipe(), weights, zero(recipe()), 64, 8).export
    assert sum(p.high for p in export) == 2 * 2100e6  # the largest unit, gathered and in the exported precision
    small = replace(weights, tensors={(10**9, True): 8})
    assert sum(p.high for p in host(recipe(), small, zero(recipe()), 64, 8).export) == 2 * 2100e6 + 16e9


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("engine", "ranks", "model"),
    [
        ("deepspeed", 1, {"dtype": "bf16"}),
        ("deepspeed", 2, {"dtype": "fp32"}),
        ("plain", 1, {"dtype": "fp32", "gradient_checkpointing": True}),
        (
            "plain",
            1,
            {"dtype": "fp32", "gradient_checkpointing": True, "offload_activations": True, "mlp_tile": 256},
        ),
    ],
    ids=["bf16", "two ranks", "plain, recompute", "plain, host and tiles"],
)
def test_predicts_the_measured_peak(engine: str, ranks: int, model: dict[str, Any], tmp_path: Path) -> None:
    """Peak of all tensors of two real training steps (torch's profiler), of a model of 10 million parameters."""
    path = tiny_model(
        tmp_path / "model", "qwen3", 0, hidden_size=256, intermediate_size=1024, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, vocab_size=8192, tie_word_embeddings=False,
    )  # fmt: skip
    config = recipe(str(path), "cpu", head_chunk=256, **model)
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"engine": engine})})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    record = {"prompt": 200, "response": 61, "rejects": 4, "records": 16}
    job = record | {"config": config.model_dump(mode="json"), "ranks": ranks, "port": port}
    (tmp_path / "job.json").write_text(json.dumps(job))
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path / "ext")}
    command = [sys.executable, str(Path(__file__).with_name("zero3_step.py")), str(tmp_path / "job.json")]
    running = [
        subprocess.Popen([*command, str(r)], env=environment, stdout=subprocess.PIPE, text=True) for r in range(ranks)
    ]
    measured = [json.loads(p.communicate(timeout=800)[0].splitlines()[-1]) for p in running]

    shape = AutoConfig.from_pretrained(path)
    weights = count_weights(config.model, shape)
    activations = count_activations(config.model, shape, 200, [61] * 5)
    shares = zero(config) if engine == "deepspeed" else Zero.plain()
    plan = per_gpu(config, weights, activations, shares, ranks, 2000)
    tensors = sum(p.high for p in (*plan.resident, *plan.phases[plan.peak_phase]))
    tensors += offloaded(config, weights, 2000)  # here the host is the device
    print(f"predicted {tensors / 1e6:.0f} MB, measured {[round(m['tensors'] / 1e6) for m in measured]}")
    assert tensors == pytest.approx(max(m["tensors"] for m in measured), rel=0.2)
