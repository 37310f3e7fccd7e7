"""Frozen weights in 4 bits (QLoRA), by transformers and bitsandbytes."""

from __future__ import annotations

import torch
from transformers import BitsAndBytesConfig, PretrainedConfig
from transformers.utils import is_bitsandbytes_available

from dpeer.config import Model
from dpeer.errors import ConfigError
from dpeer.model.families import expert_count

BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight: 4 bits, and the scales of blocks of 64, which are 8 bits and have scales of their own per 256."""


def refuse_four_bits(spec: Model) -> None:
    """ConfigError where 4-bit weights are asked for and cannot be had; nothing is loaded."""
    if spec.load_in_4bit and not is_bitsandbytes_available():
        raise ConfigError(
            "model.load_in_4bit = true needs the package bitsandbytes, which is not installed here or is too old for "
            "this transformers. Install it on every node (pip install bitsandbytes), or set model.load_in_4bit=false "
            "and save memory with a model.dtype of bf16, gradient_checkpointing and cluster.engine=deepspeed."
        )


def four_bits(shape: PretrainedConfig, path: str, dtype: torch.dtype) -> BitsAndBytesConfig:
    """How transformers loads the linear layers; embedding, head and norms stay as they are. ConfigError for experts,
    whose weights are no linear layers and would stay too."""
    if expert_count(shape.get_text_config()):
        raise ConfigError(
            f"model {path}: model.load_in_4bit leaves fused experts, which are most of this model, at 16 bits, so it "
            "would save next to nothing. Set it to false."
        )
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
