"""Attention over response trees without copies of a prompt's keys and values.

What a response attends to falls into two parts, each a call of a variable-length kernel: its own tokens (causal), and
its prompt (all of it). The kernel's logsumexp says how much weight each part has, so the two merge exactly; and since
its backward pass only asks for the output and the logsumexp of the whole softmax, running it once per part with the
merged ones gives the whole gradient (as in ring attention, Liu et al. 2023, arXiv:2310.01889). A sink, a logit of its
own per head that leads to no value, is one more such part: output times sigmoid(logsumexp - sink).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from dpeer.data.packing import Lengths, Pack


class Kernel(Protocol):
    """A variable-length kernel: queries [T, H, D], keys and values [K, H_kv, D], logsumexp [H, T] in fp32."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, causal: bool, scale: float | None,
        window: int | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Output [T, H, D] and logsumexp of the scaled scores. `window`: keys that a causal query sees at most."""
        ...

    def backward(
        self, d_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
        lengths: Lengths, causal: bool, scale: float | None, window: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Gradients of queries, keys and values, with softmax weights exp(score - lse)."""
        ...


class TorchFlash:
    """The kernel behind torch's `varlen_attn`, whose public form cannot be given another output and logsumexp.

    Follows `torch.nn.attention.activate_flash_attention_impl`. CUDA, half precision.
    """

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, causal: bool, scale: float | None,
        window: int | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            query, key, value, *lengths, 0.0, causal, False,
            scale=scale, window_size_left=_left(window), window_size_right=0 if causal else -1,
        )  # fmt: skip
        if lse.shape != (query.shape[1], query.shape[0]):
            raise RuntimeError(
                f"torch {torch.__version__}: the logsumexp of its variable-length kernel is {list(lse.shape)}, not "
                f"[heads, tokens] = {[query.shape[1], query.shape[0]]}. Set model.attention to gather."
            )
        return out, lse

    def backward(
        self, d_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
        lengths: Lengths, causal: bool, scale: float | None, window: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        no_dropout = torch.zeros(2, dtype=torch.uint64, device=query.device)
        d_query, d_key, d_value = torch.ops.aten._flash_attention_backward(
            d_out, query, key, value, out, lse, *lengths, 0.0, causal, no_dropout, query.new_empty(0),
            scale=scale, window_size_left=_left(window), window_size_right=0 if causal else -1,
        )  # fmt: skip
        return d_query, d_key, d_value


def _left(window: int | None) -> int:
    return -1 if window is None else window - 1


class _Cascade(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None,
        tree: Pack, scale: float | None, kernel: Kernel,
    ) -> Tensor:  # fmt: skip
        parts = tree.parts()
        out, lse = kernel.forward(query, key, value, parts.own, True, scale)
        if parts.crossing is not None:
            after, before = parts.responses, parts.prompts
            theirs, their_lse = kernel.forward(query[after], key[before], value[before], parts.crossing, False, scale)
            merged = torch.logaddexp(lse[:, after], their_lse)
            both = _weighted(out[after], lse[:, after] - merged) + _weighted(theirs, their_lse - merged)
            out[after] = both.to(out.dtype)
            lse[:, after] = merged
        ctx.tree, ctx.scale, ctx.kernel = tree, scale, kernel
        share = _sink(out, lse, sinks)
        ctx.save_for_backward(query, key, value, out, lse, share)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse, share = ctx.saved_tensors
        parts, scale, kernel, d_out = ctx.tree.parts(), ctx.scale, ctx.kernel, grads[0].contiguous()
        d_query, d_key, d_value = kernel.backward(d_out, query, key, value, out, lse, parts.own, True, scale)
        if parts.crossing is not None:
            after, before = parts.responses, parts.prompts
            of_query, of_key, of_value = kernel.backward(
                d_out[after], query[after], key[before], value[before], out[after], lse[:, after].contiguous(),
                parts.crossing, False, scale,
            )  # fmt: skip
            d_query[after] += of_query  # no place twice: the sum is deterministic
            d_key[before] += of_key
            d_value[before] += of_value
        return d_query, d_key, d_value, _of_sinks(d_out, out, share), None, None, None


class _Sunk(torch.autograd.Function):
    """Sequences of a variable-length kernel, causal, with sinks."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor,
        lengths: Lengths, scale: float | None, window: int | None, kernel: Kernel,
    ) -> Tensor:  # fmt: skip
        out, lse = kernel.forward(query, key, value, lengths, True, scale, window)
        ctx.kernel, ctx.options = kernel, (lengths, True, scale, window)
        share = _sink(out, lse, sinks)
        ctx.save_for_backward(query, key, value, out, lse, share)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse, share = ctx.saved_tensors
        d_out = grads[0].contiguous()
        gradients = ctx.kernel.backward(d_out, query, key, value, out, lse, *ctx.options)
        return *gradients, _of_sinks(d_out, out, share), None, None, None, None


def _sink(out: Tensor, lse: Tensor, sinks: Tensor | None) -> Tensor | None:
    """Take the sinks' [H] part of each softmax from output [T, H, D] and logsumexp [H, T], in place; returns it
    [H, T]."""
    if sinks is None:
        return None
    logits = sinks.to(lse.dtype)[:, None]
    whole = torch.logaddexp(lse, logits)
    out.copy_(_weighted(out, lse - whole))
    lse.copy_(whole)
    return (logits - whole).exp()


def _of_sinks(d_out: Tensor, out: Tensor, share: Tensor | None) -> Tensor | None:
    """Gradient [H] of the sinks: a logit without a value only takes weight from the others."""
    if share is None:
        return None
    return -(share * (d_out.to(share.dtype) * out).sum(-1).T).sum(1)


def _weighted(out: Tensor, log_weight: Tensor) -> Tensor:
    """Output [T, H, D] times exp(log_weight [H, T]), in the precision of the weight."""
    return out * log_weight.exp().T[..., None]


def cascade(
    query: Tensor, key: Tensor, value: Tensor, tree: Pack, scale: float | None, kernel: Kernel,
    sinks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Attention [T, H, D] of a pack's tree: queries [T, H, D], keys and values [T, H_kv, D] in the pack's order, sinks
    [H].

    In half precision it differs from one softmax over both parts by the rounding of each part's output.
    """
    apply: Callable[..., Tensor] = _Cascade.apply
    return apply(query.contiguous(), key.contiguous(), value.contiguous(), sinks, tree, scale, kernel)


def with_sinks(
    query: Tensor, key: Tensor, value: Tensor, sinks: Tensor,
    lengths: Lengths, scale: float | None, window: int | None, kernel: Kernel,
) -> Tensor:  # fmt: skip
    """Causal attention [T, H, D] of sequences with sinks [H]: queries [T, H, D], keys and values [K, H_kv, D]."""
    apply: Callable[..., Tensor] = _Sunk.apply
    return apply(query.contiguous(), key, value, sinks, lengths, scale, window, kernel)
