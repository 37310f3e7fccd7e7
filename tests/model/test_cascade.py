"""A prompt's part and the own part of each response, merged by logsumexp, are the attention of the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dpeer.data.packing import Lengths, Pack, build_pack, dummy_pack
from dpeer.data.tokenize import TokenTree
from dpeer.model import tree_attention as attention
from dpeer.model.cascade import TorchFlash, cascade
from tests.model.test_varlen import by_definition

Make = Callable[[Sequence[int], int], TokenTree]


class Slow:
    """One softmax per sequence; backward recomputes the weights from the given logsumexp, as FlashAttention does."""

    def __init__(self) -> None:
        self.keys = 0

    def blocks(
        self, query: Tensor, key: Tensor, lengths: Lengths, causal: bool, scale: float | None, window: int | None
    ) -> Any:
        """(queries, keys, scores [H, q, k]) of every sequence; the causal mask is aligned at the bottom right."""
        groups, scale = query.shape[1] // key.shape[1], scale or query.shape[-1] ** -0.5
        bounds = [x.tolist() for x in (lengths.cu_q, lengths.cu_k)]
        assert bounds[0][-1] == len(query) and bounds[1][-1] == len(key)
        for q0, q1, k0, k1 in zip(bounds[0], bounds[0][1:], bounds[1], bounds[1][1:], strict=False):
            assert q1 - q0 <= lengths.max_q and k1 - k0 <= lengths.max_k
            k = key[k0:k1].repeat_interleave(groups, dim=1)
            scores = torch.einsum("qhd,khd->hqk", query[q0:q1], k) * scale
            if causal:
                shape = scores.shape[1:]
                seen = torch.ones(shape).tril(shape[1] - shape[0]).bool()
                if window is not None:
                    seen &= torch.ones(shape).triu(shape[1] - shape[0] - window + 1).bool()
                scores = scores.masked_fill(~seen, -math.inf)
            yield slice(q0, q1), slice(k0, k1), scores

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, lengths: Lengths, causal: bool, scale: float | None,
        window: int | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        self.keys += len(key)
        out, lse = torch.empty_like(query), query.new_empty(query.shape[1], len(query))
        for q, k, scores in self.blocks(query, key, lengths, causal, scale, window):
            lse[:, q] = scores.logsumexp(-1)
            v = value[k].repeat_interleave(query.shape[1] // key.shape[1], dim=1)
            out[q] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
        return out, lse

    def backward(
        self, d_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor,
        lengths: Lengths, causal: bool, scale: float | None, window: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        assert d_out.is_contiguous() and lse.is_contiguous()
        groups, factor = query.shape[1] // key.shape[1], scale or query.shape[-1] ** -0.5
        d_query, d_key, d_value = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for q, k, scores in self.blocks(query, key, lengths, causal, scale, window):
            weights = (scores - lse[:, q, None]).exp()
            k_all, v_all = (x[k].repeat_interleave(groups, dim=1) for x in (key, value))
            d_weights = torch.einsum("qhd,khd->hqk", d_out[q], v_all)
            d_scores = weights * (d_weights - (d_out[q] * out[q]).sum(-1).T[..., None]) * factor
            d_query[q] += torch.einsum("hqk,khd->qhd", d_scores, k_all)
            d_key[k] += torch.einsum("hqk,qhd->khd", d_scores, query[q]).unflatten(1, (-1, groups)).sum(2)
            d_value[k] += torch.einsum("hqk,qhd->khd", weights, d_out[q]).unflatten(1, (-1, groups)).sum(2)
        return d_query, d_key, d_value


def inputs(pack: Pack, heads: tuple[int, int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [T, heads, D] that want gradients; large enough for uneven softmax weights."""
    generator = torch.Generator().manual_seed(7)
    query, key, value = (
        (2 * torch.randn(pack.tokens, n, 4, generator=generator, dtype=dtype)).requires_grad_()
        for n in (heads[0], heads[1], heads[1])
    )
    return query, key, value


def dense(
    query: Tensor, key: Tensor, value: Tensor, pack: Pack, window: int | None = None, sinks: Tensor | None = None
) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    return by_definition(q, k, v, pack, window, sinks)[0]


SHAPES = st.lists(st.lists(st.integers(1, 6), min_size=2, max_size=5), min_size=1, max_size=3)


@settings(deadline=None, max_examples=40)
@given(shapes=SHAPES, heads=st.sampled_from([(2, 2), (4, 2), (4, 1)]))
def test_cascade_is_dense_attention(shapes: list[list[int]], heads: tuple[int, int]) -> None:
    """Forward and gradients, fp64; records without response inputs among them."""
    trees = [TokenTree(i, (1,) * p, tuple((2,) * r for r in rest), (), 0, ()) for i, (p, *rest) in enumerate(shapes)]
    pack = build_pack(trees, range(len(trees)))
    results = []
    for attend in (lambda q, k, v: cascade(q, k, v, pack, None, Slow()), lambda q, k, v: dense(q, k, v, pack)):
        given = inputs(pack, heads)
        out = attend(*given)
        (out.cos() * torch.arange(out.numel()).reshape(out.shape)).sum().backward()
        results.append([out.detach(), *(x.grad for x in given)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(
    shapes=SHAPES, heads=st.sampled_from([(2, 2), (4, 2)]), window=st.sampled_from([None, 1, 3]),
    way=st.sampled_from(["cascade", "gathered", "segments"]),
)  # fmt: skip
def test_sinks_take_their_part(shapes: list[list[int]], heads: tuple[int, int], window: int | None, way: str) -> None:
    """Every path, with the sinks' own gradients."""
    trees = [TokenTree(i, (1,) * p, tuple((2,) * r for r in rest), (), 0, ()) for i, (p, *rest) in enumerate(shapes)]
    pack = build_pack(trees, range(len(trees)))
    window = None if way == "cascade" else window

    def ours(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
        if way == "cascade":
            return cascade(q, k, v, pack, None, Slow(), sinks)
        batch = [x.transpose(0, 1)[None] for x in (q, k, v)]
        attend = attention._segments if way == "segments" else attention.varlen_attention
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "TorchFlash", Slow)
            return attend(*batch, pack, None, window, sinks)[0]

    results = []
    for attend in (ours, lambda q, k, v, sinks: dense(q, k, v, pack, window, sinks)):
        given = (*inputs(pack, heads), torch.linspace(-2, 4, heads[0], dtype=torch.float64).requires_grad_())
        out = attend(*given)
        (out.cos() * torch.arange(out.numel()).reshape(out.shape)).sum().backward()
        results.append([out.detach(), *(x.grad for x in given)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-9)


def test_no_key_is_copied(tree_of: Make) -> None:
    """Every token is a key once for itself, every prompt once more; gathering would repeat it per response."""
    kernel, pack = Slow(), build_pack([tree_of((50, 3, 3, 3, 3), 1)], [0])
    cascade(*inputs(pack, (2, 2)), pack, None, kernel)
    assert kernel.keys == pack.tokens + 50
    assert len(pack.varlen()[0]) == pack.tokens + 4 * 50


def test_the_dummy_and_a_pack_of_single_tokens_have_no_query_of_length_one() -> None:
    for pack in (dummy_pack(), build_pack([TokenTree(0, (1,), ((2,), (3,)), (), 0, ())], [0])):
        parts = pack.parts()
        assert parts.own.max_q == 2 and (parts.crossing is None or parts.crossing.max_q == 2)
        assert torch.isfinite(cascade(*inputs(pack, (2, 1)), pack, None, Slow())).all()


@pytest.mark.parametrize(
    ("gather", "window", "chosen"), [(True, None, "gather"), (False, None, "cascade"), (False, 3, "gather")]
)
def test_layers_with_a_window_gather(
    monkeypatch: pytest.MonkeyPatch, tree_of: Make, gather: bool, window: int | None, chosen: str
) -> None:
    pack = build_pack([tree_of((4, 3, 3), 1)], [0])
    calls: list[str] = []

    class Cuda(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(attention, "varlen_attention", lambda *_: calls.append("gather"))

    def chosen_cascade(query: Tensor, *_: Any) -> Tensor:
        calls.append("cascade")
        return query

    monkeypatch.setattr(attention, "cascade", chosen_cascade)
    q, k, v = (x.detach().bfloat16().transpose(0, 1)[None].as_subclass(Cuda) for x in inputs(pack, (2, 2)))
    attention.tree_attention(nn.Identity(), q, k, v, None, tree=pack, sliding_window=window, gather=gather)
    assert calls == [chosen]


@pytest.mark.parametrize(("causal", "window"), [(True, None), (False, None), (True, 3)])
def test_torch_takes_these_arguments(
    monkeypatch: pytest.MonkeyPatch, tree_of: Make, causal: bool, window: int | None
) -> None:
    """Bound to the schemas of the installed torch; causal is what `varlen_attn` makes of a window of (-1, 0)."""
    schemas = {
        name: {a.name: a for a in getattr(torch.ops.aten, name).default._schema.arguments}
        for name in ("_flash_attention_forward", "_flash_attention_backward")
    }
    pack = build_pack([tree_of((4, 3, 3), 1)], [0])
    q, k, v = inputs(pack, (4, 2), torch.bfloat16)
    lse = torch.zeros(4, pack.tokens)
    bound: list[dict[str, Any]] = []

    def record(name: str, out: Any) -> Callable[..., Any]:
        order = [n for n, a in schemas[name].items() if not a.kwarg_only]

        def call(*args: Any, **kwargs: Any) -> Any:
            assert set(kwargs) <= set(schemas[name]) and len(args) == len(order)
            bound.append(dict(zip(order, args, strict=True)) | kwargs)
            return out

        return call

    class Aten:
        _flash_attention_forward = staticmethod(record("_flash_attention_forward", (q, lse, 0, 0, 0)))
        _flash_attention_backward = staticmethod(record("_flash_attention_backward", (q, k, v)))

    monkeypatch.setattr(torch.ops, "aten", Aten)
    lengths = pack.parts().own
    assert TorchFlash().forward(q, k, v, lengths, causal, 0.5, window)[1] is lse
    TorchFlash().backward(q, q, k, v, q, lse, lengths, causal, 0.5, window)
    for call in bound:
        assert call["is_causal"] is causal and call["scale"] == 0.5 and call["dropout_p"] == 0
        assert (call["window_size_left"], call["window_size_right"]) == (2 if window else -1, 0 if causal else -1)
        assert call["cum_seq_q"] is lengths.cu_q and call["max_k"] == lengths.max_k
    assert bound[1]["rng_state"].dtype == torch.uint64 and bound[1]["logsumexp"] is lse
    with pytest.raises(RuntimeError, match="to gather"):
        Aten._flash_attention_forward = staticmethod(record("_flash_attention_forward", (q, lse.T, 0, 0, 0)))
        TorchFlash().forward(q, k, v, lengths, causal, 0.5)
