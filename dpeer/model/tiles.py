"""MLPs of decoder layers in tiles of tokens, so that what they compute in between is alive for one tile alone.

An MLP maps each token by itself. A tile is computed again in the backward pass, its gradients of the weights are added
up in fp32 and handed on once, in the weights' precision, as one product over all tokens would be: hooks of engines see
one gradient a pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dpeer.model.families import causal_lm, family_of

NAMES = ("mlp", "feed_forward")
EXPERTS = re.compile(r"expert|router|(^|\.)gate$")
Forward = Callable[[Tensor], Tensor]


def dense_mlps(model: PreTrainedModel) -> list[nn.Module]:
    """MLPs of the decoder layers that send all tokens through the same weights."""
    layers = family_of(causal_lm(model).config.get_text_config()).decoder_layers(model)
    found = (getattr(layer, name, None) for layer in layers for name in NAMES)
    return [mlp for mlp in found if isinstance(mlp, nn.Module) and not _has_experts(mlp)]


def _has_experts(mlp: nn.Module) -> bool:
    names = (name for name, _ in (*mlp.named_modules(), *mlp.named_parameters()))
    return any(EXPERTS.search(name) for name in names) or bool(EXPERTS.search(type(mlp).__name__.lower()))


def tile_mlps(model: PreTrainedModel, size: int) -> int:
    """Have dense MLPs compute tiles of `size` tokens; returns how many there are. Names of weights stay."""
    mlps = dense_mlps(model)
    for mlp in mlps:
        mlp.forward = partial(_tiled, mlp.forward, mlp, size)
    return len(mlps)


def _tiled(forward: Forward, mlp: nn.Module, size: int, hidden: Tensor) -> Tensor:
    """Hidden states [..., T, H]; `forward` is the MLP's own."""
    if hidden.shape[:-1].numel() <= size:
        return forward(hidden)
    if not torch.is_grad_enabled():
        return _outputs(forward, hidden, size)
    saved: Tensor = _Saved.apply(hidden, hidden.new_empty(0).requires_grad_())  # type: ignore[no-untyped-call]
    weights = (p for p in mlp.parameters() if p.requires_grad)
    out: Tensor = _Tiles.apply(hidden, saved, forward, size, *weights)  # type: ignore[no-untyped-call]
    return out


def _tiles(hidden: Tensor, size: int) -> Iterator[Tensor]:
    """Views [..., n, H] of n <= size tokens each, of tensors [..., T, H]."""
    flat = hidden.reshape(*(1 for _ in hidden.shape[:-2]), -1, hidden.shape[-1])
    yield from torch.split(flat, size, dim=-2)


def _outputs(forward: Forward, hidden: Tensor, size: int) -> Tensor:
    out = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    for source, target in zip(_tiles(hidden, size), _tiles(out, size), strict=True):
        target.copy_(forward(source))
    return out


class _Saved(torch.autograd.Function):
    """Saves the hidden states before tiles are computed: checkpointing, which stops where all is saved again, then
    computes none of them only for that."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, anchor: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        return anchor.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[None, None]:
        return None, None


class _Tiles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, saved: Tensor, forward: Forward, size: int, *weights: Tensor) -> Tensor:
        ctx.saved, ctx.compute, ctx.size, ctx.weights = saved.grad_fn, forward, size, weights
        return _outputs(forward, hidden, size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (hidden,), wanted = ctx.saved.saved_tensors, ctx.needs_input_grad[0]
        d_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        sums: list[Tensor | None] = [None] * len(ctx.weights)
        for source, d_out, target in zip(*(_tiles(x, ctx.size) for x in (hidden, grads[0], d_hidden)), strict=True):
            source = source.detach().requires_grad_(wanted)
            with torch.enable_grad():
                out = ctx.compute(source)
            inputs = [*[source] * wanted, *ctx.weights]
            found = list(torch.autograd.grad(out, inputs, d_out, allow_unused=True))
            if wanted:
                target.copy_(found.pop(0))
            sums = [_added(a, b) for a, b in zip(sums, found, strict=True)]
        d_weights = [None if s is None else s.to(p.dtype) for s, p in zip(sums, ctx.weights, strict=True)]
        return (d_hidden if wanted else None), None, None, None, *d_weights


def _added(total: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    """In fp32, of its own: autograd may hand the same tensor to two weights."""
    if gradient is None:
        return total
    return gradient.to(torch.float32, copy=True) if total is None else total.add_(gradient)
