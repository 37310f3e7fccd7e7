"""The CUDA path without a GPU: what we hand to the variable-length kernel, against a slow one written out here."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from dpeer.data.packing import Pack, build_pack, dummy_pack
from dpeer.data.tokenize import TokenTree
from dpeer.model.tree_attention import _segments, varlen_attention

Make = Callable[[Sequence[int], int], TokenTree]


def slow_varlen_attn(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """The kernel's contract, query by query: bottom-right alignment, window (left, right) with -1 for no bound."""
    assert query.is_contiguous() and cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert cu_seq_q[-1] == len(query) and cu_seq_k[-1] == len(key) == len(value)
    assert max_q == int(cu_seq_q.diff().max()) and max_k == int(cu_seq_k.diff().max())
    assert enable_gqa or query.shape[1] == key.shape[1]
    left, right = (math.inf if w < 0 else w for w in window_size)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    out = torch.full_like(query, math.nan)
    for q0, q1, k0, k1 in zip(cu_seq_q, cu_seq_q[1:], cu_seq_k, cu_seq_k[1:], strict=False):
        for i in range(q0, q1):
            place = (k1 - k0) - (q1 - i)  # of query i among the keys, when the last query meets the last key
            for head in range(query.shape[1]):
                kv = head // (query.shape[1] // key.shape[1])
                seen = [j for j in range(k0, k1) if -right <= place - (j - k0) <= left]
                weights = torch.softmax(scale * key[seen, kv] @ query[i, head], dim=0)
                out[i, head] = weights @ value[seen, kv]
    return out


def varlen_attn_of_torch_2_11(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
    return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
) -> Tensor:  # fmt: skip
    """Has no `enable_gqa`, and takes grouped heads all the same."""
    lengths = (cu_seq_q, cu_seq_k, max_q, max_k)
    return slow_varlen_attn(query, key, value, *lengths, scale=scale, window_size=window_size, enable_gqa=True)


def by_definition(
    query: Tensor, key: Tensor, value: Tensor, pack: Pack, window: int | None, sinks: Tensor | None = None
) -> Tensor:
    """Attention over the whole pack with one dense mask from the records' shapes alone; position = distance."""
    tokens = pack.tokens
    prompt_of, own = torch.zeros(tokens, dtype=torch.long), torch.zeros(tokens, dtype=torch.long)
    for number, s in enumerate(pack.segments):
        own[s.start : s.start + s.length] = number
        prompt_of[s.start : s.start + s.length] = s.prompt_start
    positions = pack.position_ids[0]
    distance = positions[:, None] - positions[None, :]
    is_prompt = torch.tensor([pack.segments[int(n)].prompt_length == 0 for n in own])
    allowed = (own[:, None] == own[None, :]) | (is_prompt[None, :] & (prompt_of[:, None] == prompt_of[None, :]))
    allowed &= (distance >= 0) & (distance < (window or tokens))
    groups = query.shape[1] // key.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = (query @ k.transpose(-1, -2) / math.sqrt(query.shape[-1])).masked_fill(~allowed, -math.inf)
    if sinks is not None:  # a key for all, whose value is zero
        scores = torch.cat([sinks[None, :, None, None].expand(*scores.shape[:-1], 1), scores], dim=-1)
        v = torch.cat([torch.zeros_like(v[:, :, :1]), v], dim=2)
    return (scores.softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("kernel", [slow_varlen_attn, varlen_attn_of_torch_2_11])
@pytest.mark.parametrize("window", [None, 1, 4, 16, 10**6])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (4, 1)], ids=["mha", "gqa", "mqa"])
def test_varlen_equals_segments_equals_definition(
    monkeypatch: pytest.MonkeyPatch,
    tree_of: Make,
    window: int | None,
    heads: tuple[int, int],
    kernel: Callable[..., Tensor],
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    pack = build_pack([tree_of((6, 5, 2, 1, 3), 1), tree_of((1, 2, 7), 2), tree_of((9, 1), 3)], [0, 1, 2])
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, pack.tokens, 4, generator=generator) for h in (heads[0], heads[1], heads[1]))
    slow, segments = varlen_attention(q, k, v, pack, None, window), _segments(q, k, v, pack, None, window)
    assert slow.shape == segments.shape == (1, pack.tokens, heads[0], 4)
    torch.testing.assert_close(slow, segments, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(by_definition(q, k, v, pack, window), segments, rtol=1e-5, atol=1e-6)


def test_scale_reaches_both_paths(monkeypatch: pytest.MonkeyPatch, tree_of: Make) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", slow_varlen_attn)
    pack = build_pack([tree_of((4, 3, 3), 1)], [0])
    q, k, v = (torch.randn(1, 2, pack.tokens, 4, generator=torch.Generator().manual_seed(s)) for s in range(3))
    scaled = _segments(q, k, v, pack, 0.9, None)
    torch.testing.assert_close(varlen_attention(q, k, v, pack, 0.9, None), scaled, rtol=1e-5, atol=1e-6)
    assert (scaled - _segments(q, k, v, pack, None, None)).abs().max() > 1e-3


def test_varlen_gradients_equal(monkeypatch: pytest.MonkeyPatch, tree_of: Make) -> None:
    """A prompt's keys are gathered once per response: their gradients must add up."""
    monkeypatch.setattr(varlen, "varlen_attn", slow_varlen_attn)
    pack = build_pack([tree_of((4, 3, 5, 2), 1)], [0])
    grads = []
    for attention in (varlen_attention, _segments):
        q, k, v = (
            torch.randn(1, h, pack.tokens, 4, generator=torch.Generator().manual_seed(h)).requires_grad_()
            for h in (4, 2, 2)
        )
        (attention(q, k, v, pack, None, 3).cos().sum()).backward()
        grads.append([x.grad for x in (q, k, v)])
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_varlen_of_a_hand_made_pack(tree_of: Make) -> None:
    """Prompt of 2, responses of 3 and 1: the last token of a response is no input, so the second has no segment."""
    kv_index, cu_q, cu_k, longest_q, longest_k = build_pack(
        [tree_of((2, 3, 1), 0), tree_of((1, 2), 1)], [0, 1]
    ).varlen()
    assert kv_index.tolist() == [0, 1, 0, 1, 2, 3, 4, 4, 5]
    assert cu_q.tolist() == [0, 2, 4, 5, 6] and cu_k.tolist() == [0, 2, 6, 7, 9]
    assert (longest_q, longest_k) == (2, 4)
    assert dummy_pack().varlen()[0].tolist() == [0, 0, 1]


def test_the_real_kernel_takes_these_arguments(monkeypatch: pytest.MonkeyPatch, tree_of: Make) -> None:
    real, calls = varlen.varlen_attn, []

    def record(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(inspect.signature(real).bind(*args, **kwargs))
        return torch.zeros_like(args[0])

    monkeypatch.setattr(varlen, "varlen_attn", record)
    x = torch.zeros(1, 2, 4, 8)
    varlen_attention(x, x, x, build_pack([tree_of((2, 3), 0)], [0]), 0.5, 3)
    (bound,) = calls
    assert list(bound.arguments)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert bound.arguments["window_size"] == (2, 0) and bound.arguments["scale"] == 0.5
