"""Random checkpoints of models that see, a few layers deep, with a tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from dpeer.toyworld.model import bpe

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
    "bos_token_id": None,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
QWEN = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
    "tie_word_embeddings": False,
}
QWEN_EYES = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64, "patch_size": 4,
    "num_position_embeddings": 16,
}  # fmt: skip
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16, "query_pre_attn_scalar": 32},
        VISION,
        {"image_token_index": 290, "boi_token_index": 288, "eoi_token_index": 289, "mm_tokens_per_image": 4},
    ),
    "gemma4": (
        {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "sliding_window": 16,
            "hidden_size_per_layer_input": 16,
            "global_head_dim": 48,
            "final_logit_softcapping": 30.0,
            "use_double_wide_mlp": True,
        },
        VISION | {"num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "position_embedding_size": 64},
        {
            "audio_config": None, "image_token_id": 290, "video_token_id": 291, "audio_token_id": 292,
            "boi_token_id": 288, "eoi_token_id": 289, "boa_token_id": 293, "eoa_token_index": 294,
        },
    ),
    "mistral3": (
        {"model_type": "ministral3", "tie_word_embeddings": False},
        VISION | {"model_type": "pixtral", "head_dim": 16},
        {"image_token_index": 290, "tie_word_embeddings": False},
    ),
    "llava": (
        {"model_type": "llama", "tie_word_embeddings": False},
        VISION | {"model_type": "clip_vision_model", "projection_dim": 32},
        {"image_token_index": 290, "tie_word_embeddings": False},
    ),
    "qwen3_5": (QWEN, QWEN_EYES, {"image_token_id": 290, "tie_word_embeddings": False}),
    "qwen3_5_moe": (
        QWEN | {
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
        QWEN_EYES,
        {"image_token_id": 290, "tie_word_embeddings": False},
    ),
}  # fmt: skip


def tiny(folder: Path, kind: str, vocab: int = 300, texts: Iterable[str] = (), shard: str = "1GB", **text: Any) -> Path:
    """Weights of std 0.2, norms and biases off their start. The last twenty ids are not the tokenizer's: some of them
    stand for images or sound, as `KINDS` says for a vocabulary of 300."""
    own, vision, fields = KINDS[kind]
    fields = {k: v + vocab - 300 if "_token_i" in k else v for k, v in fields.items()}
    tokenizer = bpe(texts, vocab - 20)
    ids = {"vocab_size": vocab, "vocab_size_per_layer_input": vocab, "pad_token_id": tokenizer.pad_token_id}
    ids = {k: v for k, v in ids.items() if "layer" not in k or kind == "gemma4"}
    inner = TEXT | own | ids | {"eos_token_id": tokenizer.eos_token_id} | text
    shape = AutoConfig.for_model(kind, text_config=inner, vision_config=vision, **fields)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model: Any = AutoModelForImageTextToText.from_config(shape, dtype=torch.float32)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1 if parameter.ndim < 2 else 0.0)
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.fill_(0.8)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    return folder
