"""Log-probabilities of target tokens from hidden states, in chunks: [tokens, vocabulary] is never held."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

WEIGHT_ROWS = 16384
CHUNK_CPU, CHUNK_GPU = 256, 2048
"""Rows at once. A GPU reads and writes the whole gradient of W per chunk: that hides behind 2048 rows' arithmetic."""

Chunk = int | Literal["auto"]


class Shape(NamedTuple):
    """What a model does to its logits z: `scale` z, then cap * tanh(z / cap) where there is a `cap`."""

    scale: float = 1.0
    cap: float | None = None

    def of(self, logits: Tensor) -> Tensor:
        """In place."""
        if self.scale != 1:
            logits.mul_(self.scale)
        return logits if self.cap is None else logits.div_(self.cap).tanh_().mul_(self.cap)

    def backward(self, grad: Tensor, shaped: Tensor | None) -> Tensor:
        """The gradient of z from that of the `shaped` logits, in place of it; they are needed where there is a cap."""
        if self.cap is not None:
            assert shaped is not None
            grad.mul_(shaped.div_(self.cap).square_().neg_().add_(1))
        return grad if self.scale == 1 else grad.mul_(self.scale)


PLAIN = Shape()


def chunk_rows(chunk: Chunk, device: torch.device) -> int:
    """Rows of a chunk on a device; the meta device stands for a GPU."""
    return chunk if isinstance(chunk, int) else CHUNK_CPU if device.type == "cpu" else CHUNK_GPU


class _TokenLogprobs(torch.autograd.Function):
    """log softmax(h W^T)[target] per row. Backward recomputes a chunk of logits at a time from the stored logsumexp.

    With a frozen W the gradient with respect to h is, per row, g * (W[target] - softmax @ W): it is found in the
    forward pass, and the backward pass only scales it.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, shape: Shape) -> Tensor:
        rows = hidden.shape[0]
        logprobs = torch.empty(rows, dtype=torch.float32, device=hidden.device)
        lse = torch.empty_like(logprobs)
        frozen = not ctx.needs_input_grad[1]
        unit = torch.empty_like(hidden) if frozen and ctx.needs_input_grad[0] else None
        for i in range(0, rows, chunk):
            part = slice(i, i + chunk)
            logits = shape.of(_product(hidden[part], weight.T))
            chosen = logits.gather(1, targets[part, None])[:, 0]
            lse[part] = _logsumexp(logits, overwrite=unit is None)
            logprobs[part] = chosen - lse[part]
            if unit is not None:
                shaped = logits.clone() if shape.cap else None
                residual = shape.backward(_residual(logits, lse[part], targets[part]), shaped)
                unit[part] = residual.to(weight.dtype) @ weight
                del shaped, residual
            del logits  # before the next chunk's are made
        ctx.chunk, ctx.frozen, ctx.shape = chunk, frozen, shape
        if frozen:
            ctx.save_for_backward(unit)
        else:
            ctx.save_for_backward(hidden, weight, targets, lse)
        return logprobs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (grad,) = grads
        if ctx.frozen:
            (unit,) = ctx.saved_tensors
            return unit * grad[:, None].to(unit.dtype), None, None, None, None
        hidden, weight, targets, lse = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for i in range(0, hidden.shape[0], ctx.chunk):
            part = slice(i, i + ctx.chunk)
            logits = ctx.shape.of(_product(hidden[part], weight.T))
            shaped = logits.clone() if ctx.shape.cap else None
            residual = _residual(logits, lse[part], targets[part]).mul_(grad[part, None])
            d_logits = ctx.shape.backward(residual, shaped).to(weight.dtype)
            del logits, shaped, residual
            if d_hidden is not None:
                d_hidden[part] = d_logits @ weight
            _add_product(d_weight, d_logits.T, hidden[part])
            del d_logits
        return d_hidden, d_weight.to(weight.dtype), None, None, None


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in fp32, whatever the operands are.

    In bf16 a logit of 16 to 32 is rounded to a multiple of 0.125: the log-probability of an unlikely token would be off
    by 0.04 nats on average.
    """
    if a.device.type == "cpu":  # has no product with another output type
        return a.float() @ b.float()
    return a @ b if a.dtype == torch.float32 else torch.mm(a, b, out_dtype=torch.float32)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b in fp32, within the product where the device can do that."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
        return
    if _adds_within_product(a.device):
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
        return
    for i in range(0, len(total), WEIGHT_ROWS):  # all rows at once would need another total
        rows = slice(i, i + WEIGHT_ROWS)
        total[rows] += _product(a[rows], b)


@cache
def _adds_within_product(device: torch.device) -> bool:
    """Whether this torch adds a product of bf16 operands to an fp32 sum in place; tried once. Some take no fp32 sum."""
    if device.type != "cuda":
        return False
    one, total = torch.eye(16, dtype=torch.bfloat16, device=device), torch.ones(16, 16, device=device)
    try:
        torch.addmm(total, one, one, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return torch.equal(total, 1 + one.float())


def _logsumexp(logits: Tensor, overwrite: bool) -> Tensor:
    """torch.logsumexp over the last dimension, which would need another table of logits."""
    highest = logits.amax(-1, keepdim=True)
    shifted = logits.sub_(highest) if overwrite else logits - highest
    return shifted.exp_().sum(-1).log_().add_(highest[:, 0])


def _residual(logits: Tensor, lse: Tensor, targets: Tensor) -> Tensor:
    """onehot(target) - softmax(logits), computed in place of `logits`."""
    residual = logits.sub_(lse[:, None]).exp_().neg_()
    residual[torch.arange(len(targets), device=targets.device), targets] += 1
    return residual


def token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: Chunk = "auto", shape: Shape = PLAIN
) -> Tensor:
    """Log-probability (nats, fp32) of `targets` [N] under softmax(shape(hidden [N, H] @ weight [V, H]^T)).

    Peak extra memory is chunk x V, in the forward and the backward pass. A `chunk` of N or more is one piece.
    """
    apply: Callable[..., Tensor] = _TokenLogprobs.apply
    return apply(hidden, weight, targets, chunk_rows(chunk, hidden.device), shape)


def response_sums(values: Tensor, row_response: Tensor, responses: int) -> Tensor:
    """Sum per-token values [N] into one fp64 value per response [R].

    In fp64, because a margin is a small difference of large sums: fp32 sums of some hundred nats would put an error of
    1e-5 to 1e-4 on every margin.
    """
    total = torch.zeros(responses, dtype=torch.float64, device=values.device)
    return total.index_add(0, row_response, values.double())
