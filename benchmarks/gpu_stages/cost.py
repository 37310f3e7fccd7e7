"""One forward and backward pass over a pack, timed; and what the estimates of `dpeer plan` say of it."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dpeer import config
from dpeer.data.packing import build_pack
from dpeer.data.tokenize import TokenTree
from dpeer.estimate.footprint import Activations, Weights, count_activations, count_weights
from dpeer.model.flops import Lengths, training_flops
from dpeer.model.lm import add_lora
from dpeer.model.tree_lm import TreeLM
from gpu_stages.facts import synchronize
from gpu_stages.shapes import make, shape

RANK = 64


@dataclass(frozen=True)
class Cost:
    seconds: float
    peak: float
    """Bytes allocated at most, and reserved."""
    reserved: float
    tokens: int
    flops: float


def spec(*, lora: bool, checkpointing: bool = True, chunk: int = 2048, dtype: str = "bf16") -> config.Model:
    adapters = config.Lora(rank=RANK, alpha=2 * RANK, targets="all-linear") if lora else None
    return config.Model(
        path="random", dtype=dtype, lora=adapters, gradient_checkpointing=checkpointing, head_chunk=chunk
    )  # fmt: skip


@contextmanager
def model(fields: dict[str, Any], device: str, chosen: config.Model) -> Iterator[TreeLM]:
    """The policy without an optimizer. A full gradient is dropped as soon as it is whole, as no card holds them all."""
    causal = make(fields, device, torch.bfloat16 if chosen.dtype == "bf16" else torch.float32)
    if chosen.gradient_checkpointing:
        causal.gradient_checkpointing_enable({"use_reentrant": False})
    if chosen.lora:
        causal = add_lora(causal, chosen.lora, 0)
    lm = TreeLM(causal.train(), chosen.head_chunk)
    for parameter in lm.parameters():
        if parameter.requires_grad and not chosen.lora:
            parameter.register_post_accumulate_grad_hook(_drop)
    try:
        yield lm
    finally:
        lm.to("meta")
        del lm, causal
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def measure(lm: TreeLM, trees: Sequence[TokenTree], device: str, chosen: config.Model, runs: int = 3) -> Cost:
    """The median of `runs` after one more. Raises torch.OutOfMemoryError."""
    pack = build_pack(trees, range(len(trees))).to(device)
    spent = []
    for _ in range(runs + 1):
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        synchronize(device)
        began = time.perf_counter()
        values = lm(pack)
        torch.autograd.backward((values * torch.linspace(1, -1, len(values), device=device)).sum())
        synchronize(device)
        spent.append(time.perf_counter() - began)
        lm.zero_grad(set_to_none=True)
    peak, reserved = (
        (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if device == "cuda" else (0, 0)
    )
    return Cost(sorted(spent[1:])[runs // 2], peak, reserved, pack.tokens, flops(lm, trees, chosen))


def flops(lm: TreeLM, trees: Sequence[TokenTree], chosen: config.Model) -> float:
    return training_flops(chosen, weights(lm, chosen), [Lengths.of(t) for t in trees])


def weights(lm: TreeLM, chosen: config.Model) -> Weights:
    return _weights(chosen, lm._backbone[0].config.to_json_string(use_diff=False))


@cache
def _weights(chosen: config.Model, text: str) -> Weights:
    import json

    return count_weights(chosen, shape(json.loads(text)))


def predicted(fields: dict[str, Any], chosen: config.Model, tree: TokenTree, tokens: int) -> float:
    """Bytes of weights and activations at the peak, as `dpeer plan` counts them; without optimizer and allowances."""
    counted, parts = _estimates(chosen, tuple(fields.items()), len(tree.prompt), tuple(map(len, tree.responses)))

    def at(line: tuple[float, float]) -> float:
        return max(0.0, line[0] * tokens + line[1])

    kept = counted.layers * at(parts.layer)
    size = 2 if chosen.dtype == "bf16" else 4
    return counted.total * size + max(kept + at(parts.head), kept + at(parts.layers), at(parts.embedding))


@cache
def _estimates(
    chosen: config.Model, fields: tuple[tuple[str, Any], ...], prompt: int, responses: tuple[int, ...]
) -> tuple[Weights, Activations]:
    known = shape(dict(fields))
    return count_weights(chosen, known), count_activations(chosen, known, prompt, responses)
