"""Attention over response trees: each response attends to its prompt and to itself, never to a sibling.

Every segment (a prompt, a response) is one variable-length query; a response's keys are [prompt, own]. With a
bottom-right aligned causal mask that is exactly the attention of separate sequences, so a prompt and a golden response
are computed once however many preferences they serve. On CUDA in half precision the kernel is FlashAttention's
variable-length one (through torch), over copies of the prompts' keys and values per response (`gather`) or without
(`cascade`); elsewhere, and for heads too large for that kernel, it is SDPA, segment by segment.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from dpeer.data.packing import Lengths, Pack
from dpeer.model.cascade import TorchFlash, cascade, with_sinks
from dpeer.model.team import Team, attend_together

NAME = "tree"  # a name with "flash" in it would make transformers look for a flash package
IMPLEMENTATIONS = {"gather": NAME, "cascade": "tree_cascade"}  # by model.attention
LARGEST_HEAD = 256  # of FlashAttention
_IGNORED = {"position_ids", "cache_position", "output_attentions", "output_hidden_states", "use_cache", "seq_idx"}


def tree_attention(
    module: nn.Module,
    query: Tensor,  # [1, H, T, D]
    key: Tensor,  # [1, H_kv, T, D]
    value: Tensor,  # [1, H_kv, T, D]
    attention_mask: Tensor | None,
    *,
    tree: Pack | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    team: Team | None = None,
    gather: bool = True,
    **unknown: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers' registry; returns ([1, T, H, D], None).

    s_aux [H]: a further logit of each head, a sink: it takes weight and has no value. team: the ranks that have a slice
    of the tree each; T is then the length of this rank's. Without `gather`, layers that have no window copy no keys:
    see `cascade`. Raises ValueError for everything that it does not compute exactly, rather than ignore it.
    """
    extra = sorted(k for k, v in unknown.items() if k not in _IGNORED and v is not None)
    if tree is None or attention_mask is not None or dropout or query.shape[0] != 1 or extra:
        raise ValueError(
            f"tree attention needs a tree, no mask, no dropout, a batch of one and no further options; got tree="
            f"{'given' if tree is not None else None}, mask={'given' if attention_mask is not None else None}, "
            f"dropout={dropout}, batch={query.shape[0]}, options={extra}"
        )
    if (team is None) != (tree.part is None):
        raise ValueError("a slice of a tree needs a team, and a team slices of trees")

    def attend(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None) -> Tensor:
        return _attention(query, key, value, tree, scaling, sliding_window, sinks, gather)

    if team is None:
        return attend(query, key, value, s_aux), None
    return attend_together(query, key, value, s_aux, tree.tokens, team, attend), None


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: Pack,
    scaling: float | None,
    window: int | None,
    sinks: Tensor | None,
    gather: bool,
) -> Tensor:
    """[1, T, H, D], by the kernel that fits."""
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] <= LARGEST_HEAD:
        if gather or window is not None:
            return varlen_attention(query, key, value, tree, scaling, window, sinks)
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, D]
        return cascade(q, k, v, tree, scaling, TorchFlash(), sinks)[None]
    return _segments(query, key, value, tree, scaling, window, sinks)


def _segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: Pack,
    scaling: float | None,
    window: int | None,
    sinks: Tensor | None = None,
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    out = []
    for s in tree.segments:
        own = slice(s.start, s.start + s.length)
        q, k, v = query[:, :, own], key[:, :, own], value[:, :, own]
        if s.prompt_length:
            prompt = slice(s.prompt_start, s.prompt_start + s.prompt_length)
            k, v = torch.cat([key[:, :, prompt], k], dim=2), torch.cat([value[:, :, prompt], v], dim=2)
        if sinks is not None:
            out.append(_sunk(q, k, v, tree.mask(s.length, k.shape[2], window), scaling, sinks))
            continue
        plain = not s.prompt_length and (window is None or window >= s.length)
        mask = None if plain else tree.mask(s.length, k.shape[2], window)
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=plain, scale=scaling, enable_gqa=grouped
        )
        out.append(attended)
    return torch.cat(out, dim=2).transpose(1, 2)


def _sunk(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None, sinks: Tensor) -> Tensor:
    """One more column of logits, which leads to no value; scores and softmax in fp32 at least."""
    groups, scale = query.shape[1] // key.shape[1], query.shape[-1] ** -0.5 if scaling is None else scaling
    k, v = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = (query @ k.transpose(-1, -2) * scale).masked_fill(~mask, -math.inf)
    column = sinks[None, :, None, None].expand(*scores.shape[:-1], 1).to(scores.dtype)
    precise = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.cat([scores, column], dim=-1).softmax(-1, dtype=precise)[..., :-1]
    return weights.to(v.dtype) @ v


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: Pack,
    scaling: float | None,
    window: int | None,
    sinks: Tensor | None = None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # torch 2.11 has no such argument: its kernel takes grouped heads without being asked
    grouped: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1]} if _asks_for_gqa(varlen_attn) else {}
    kv_index, cu_q, cu_k, max_q, max_k = tree.varlen()
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, D]
    if sinks is not None:
        lengths = Lengths(cu_q, cu_k, max(2, max_q), max_k)
        return with_sinks(q, k[kv_index], v[kv_index], sinks, lengths, scaling, window, TorchFlash())[None]
    out = varlen_attn(
        q.contiguous(),
        k[kv_index],
        v[kv_index],
        cu_q,
        cu_k,
        max_q,
        max_k,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        **grouped,
    )
    assert isinstance(out, Tensor)
    return out[None]


@cache
def _asks_for_gqa(kernel: Callable[..., Any]) -> bool:
    return "enable_gqa" in signature(kernel).parameters


# Without a mask function of that name transformers makes no mask; with one it would look at the positions on the host.
for name, gather in ((IMPLEMENTATIONS["gather"], True), (IMPLEMENTATIONS["cascade"], False)):
    AttentionInterface.register(name, partial(tree_attention, gather=gather))
