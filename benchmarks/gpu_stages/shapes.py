"""Random models and records of the stages, made on the device."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from dpeer.data.tokenize import TokenTree
from dpeer.model import tree_attention

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_1B = LLAMA_8B | {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True,
}  # fmt: skip
TINY = LLAMA_8B | {
    "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 512, "max_position_embeddings": 4096,
}  # fmt: skip


def shape(fields: dict[str, Any]) -> PretrainedConfig:
    rest = {k: v for k, v in fields.items() if k != "model_type"}
    return AutoConfig.for_model(fields["model_type"], **rest)


def make(
    fields: dict[str, Any],
    device: str,
    dtype: torch.dtype,
    seed: int = 0,
    attention: str = tree_attention.NAME,
    logits: float = 4.0,
) -> PreTrainedModel:
    """A random model. Its untied head is scaled so that logits have the standard deviation `logits`: with a vocabulary
    of 32k the largest are then at 16, as those of trained models are."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape(fields), dtype=dtype, attn_implementation=attention)
    head = model.get_output_embeddings().weight
    if head is not model.get_input_embeddings().weight:
        with torch.no_grad():
            head.normal_(0.0, logits / head.shape[1] ** 0.5)  # the final norm leaves hidden states of unit variance
    return model


def record(prompt: int, responses: Sequence[int], vocabulary: int, seed: int = 0, index: int = 0) -> TokenTree:
    """Random tokens; the first response is the golden one, and better than each other."""
    rng = random.Random(seed)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary) for _ in range(n))

    edges = tuple((0, 0, k) for k in range(1, len(responses)))
    return TokenTree(index, tokens(prompt), tuple(map(tokens, responses)), edges, 0, ("A",))


def result(passed: bool | None, lines: list[str], **figures: Any) -> dict[str, Any]:
    return {"passed": passed, "lines": lines} | figures
