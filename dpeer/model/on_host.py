"""What gradient checkpointing keeps of decoder layers, their inputs, in the host's memory until the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from dpeer.errors import ConfigError
from dpeer.model.families import causal_lm, family_of

PIECE = 2**24
"""Bytes. torch hands out pinned memory in powers of two: whole tensors would take up to twice their size, and those of
packs of other lengths would not be used again."""


@dataclass(frozen=True, slots=True)
class OnHost:
    """A tensor's values in the host's memory, pinned if it was on a GPU, where copies do not hold up the host."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    pieces: tuple[Tensor, ...]

    @property
    def bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


def pack(tensor: Tensor) -> OnHost:
    """Copies run in the order of the stream: what computed the tensor is done before, what takes its memory comes
    after."""
    pieces: list[Tensor] = []
    for part in () if tensor.is_meta else torch.split(tensor.detach().reshape(-1), PIECE // tensor.itemsize):
        pieces.append(torch.empty_like(part, device="cpu", pin_memory=tensor.is_cuda).copy_(part, non_blocking=True))
    return OnHost(tensor.shape, tensor.dtype, tensor.device, tuple(pieces))


def unpack(kept: OnHost) -> Tensor:
    flat = torch.empty(kept.shape.numel(), dtype=kept.dtype, device=kept.device)
    for part, piece in zip(torch.split(flat, PIECE // flat.itemsize), kept.pieces, strict=not flat.is_meta):
        part.copy_(piece, non_blocking=True)
    return flat.view(kept.shape)


def keep_on_host(model: PreTrainedModel) -> None:
    """Have checkpointed decoder layers keep their hidden states in the host's memory. ConfigError for a model whose
    layers are not checkpointed one by one."""
    shape = causal_lm(model).config.get_text_config()
    layer: Any
    for layer in family_of(shape).decoder_layers(model):
        if (checkpoint := getattr(layer, "_gradient_checkpointing_func", None)) is None:
            raise ConfigError(
                f"model.offload_activations = true: layers of a model of type '{shape.model_type}' are not "
                "recomputed one by one, so that there is nothing to move. Set it to false."
            )
        layer._gradient_checkpointing_func = partial(_checkpointed, checkpoint)


def _checkpointed(checkpoint: Callable[..., Any], layer: Callable[..., Any], *inputs: Any) -> Any:
    """A layer's hooks around what it computes are checkpointing's own: these see its inputs alone."""
    if not inputs:
        raise ConfigError(
            "model.offload_activations = true: layers of this model take hidden states by name, which checkpointing "
            "does not hand on. Set it to false."
        )
    shape = inputs[0].shape  # hooks live as long as what they have packed: they must not hold the tensor itself

    def kept(tensor: Tensor) -> OnHost | Tensor:
        return pack(tensor) if tensor.shape == shape and tensor.is_floating_point() else tensor

    def back(saved: OnHost | Tensor) -> Tensor:
        return unpack(saved) if isinstance(saved, OnHost) else saved

    with saved_tensors_hooks(kept, back):
        return checkpoint(layer, *inputs)
