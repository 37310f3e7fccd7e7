"""Random checkpoints of every supported family, and hand-made token trees with all the awkward shapes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dpeer.data.tokenize import TokenTree
from dpeer.toyworld.model import tiny_model

VOCAB = 300
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": False, "num_attention_heads": 4, "num_key_value_heads": 2}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": 16, "tie_word_embeddings": False}),
    "gemma": ("gemma", {}),
    "gemma3": (
        "gemma3",
        {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 32},
    ),
    "gemma2": ("gemma2", {}),
    "qwen3_5": (
        "qwen3_5_text",
        {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
         "layer_types": ["linear_attention", "full_attention"], "initializer_range": 0.1},
    ),
    "gpt_oss": (
        "gpt_oss",
        {"sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
         "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
}  # fmt: skip


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a two-layer random model by name in MODELS, made on first use."""
    root = tmp_path_factory.mktemp("models")

    def make(name: str) -> Path:
        family, options = MODELS[name]
        folder = root / name
        return folder if folder.exists() else tiny_model(folder, family, 7, vocab=VOCAB, hidden_size=48, **options)

    return make


@pytest.fixture(scope="session")
def tree_of() -> Callable[[Sequence[int], int], TokenTree]:
    """A tree of random tokens from [prompt length, response lengths ...] and a seed."""

    def make(lengths: Sequence[int], seed: int) -> TokenTree:
        rng = random.Random(seed)
        prompt, *responses = (tuple(rng.randrange(3, VOCAB - 40) for _ in range(n)) for n in lengths)
        edges = tuple((0, 0, j) for j in range(1, len(responses)))
        return TokenTree(index=seed, prompt=prompt, responses=tuple(responses), edges=edges, golden=0, mask=("A",))

    return make


@pytest.fixture(scope="session")
def trees(tree_of: Callable[[Sequence[int], int], TokenTree]) -> list[TokenTree]:
    """One-token prompts and responses, prompts longer than the window of 16, duplicates, a lone response."""
    made = [
        tree_of(shape, i) for i, shape in enumerate([(23, 9, 1, 20), (1, 6, 6), (1, 1), (5, 19, 2, 3, 1, 7), (17, 18)])
    ]
    twin = made[1]
    made.append(TokenTree(5, twin.prompt, (twin.responses[0],) * 3, (), 0, ("A",)))
    return made
