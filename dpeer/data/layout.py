"""How the tokens of records reach a model: as trees, each prompt once, or as separate sequences beside each other.

A model that keeps a state across positions which nothing hands over, or whose attention tree attention does not
compute, runs as separate sequences, padded at the right: exact for every causal model, and dearer, as each response
brings its prompt along.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dpeer.data.bins import plan_packs
from dpeer.data.packing import (
    Counts,
    Pack,
    all_forward_tokens,
    all_longest,
    all_responses,
    forward_tokens,
)
from dpeer.data.tokenize import TokenTree

Layout = Literal["tree", "sequences"]


def cost(tree: TokenTree, layout: Layout) -> int:
    """Tokens that a model computes for a record by itself."""
    return forward_tokens(tree) if layout == "tree" else len(tree.responses) * (tree.longest - 1)


def costs(trees: Sequence[TokenTree], layout: Layout) -> Counts:
    """[records]: `cost` of each; of stored records without reading their tokens."""
    return all_forward_tokens(trees) if layout == "tree" else all_responses(trees) * (all_longest(trees) - 1)


def plan(trees: Sequence[TokenTree], ranks: int, budget: int, layout: Layout) -> list[list[list[int]]]:
    """Records by [rank][pack] within a budget of computed tokens, as `plan_packs`; sequences with their padding."""
    if layout == "tree":
        return plan_packs(costs(trees, layout).tolist(), ranks, budget)
    counts, longest = all_responses(trees), all_longest(trees) - 1
    return plan_sequences(list(zip(counts.tolist(), longest.tolist(), strict=True)), ranks, budget)


def plan_sequences(sizes: Sequence[tuple[int, int]], ranks: int, budget: int) -> list[list[list[int]]]:
    """Records of (sequences, tokens of the longest) by [rank][pack]."""
    packs = plan_packs([count * longest for count, longest in sizes], ranks, budget)
    return [[part for items in mine for part in _split(items, sizes, budget)] for mine in packs]


def _split(items: Sequence[int], sizes: Sequence[tuple[int, int]], budget: int) -> list[list[int]]:
    """A pack in parts that keep to the budget though every sequence of a part is as long as its longest."""
    parts: list[list[int]] = []
    for i in sorted(items, key=lambda i: (-sizes[i][1], i)):
        if parts and padded([sizes[k] for k in (*parts[-1], i)]) <= budget:
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts


def padded(sizes: Sequence[tuple[int, int]]) -> int:
    """Tokens of these records of (sequences, tokens of the longest), with their padding."""
    return sum(count for count, _ in sizes) * max(longest for _, longest in sizes)


def computed(pack: Pack, layout: Layout) -> int:
    """Tokens that a model computes for a pack, padding included."""
    return pack.tokens if layout == "tree" else len(pack.response_tokens) * pack.longest


def sequences(pack: Pack) -> tuple[Tensor, Tensor]:
    """A pack as token ids [R, L] of prompt + response, padded at the right by a token of no meaning, and the place [N]
    of each of its prediction rows among the R x L positions."""
    ids, positions = pack.input_ids[0], pack.position_ids[0]
    counts = pack.response_tokens
    last = counts.cumsum(0) - 1  # the row that predicts a response's last token
    before = positions[pack.rows[last - counts + 1]]  # position of its prompt's last token
    lengths = before + counts  # tokens of prompt + response, the last one left out
    longest = pack.longest
    column = torch.arange(longest, device=ids.device)[None]
    start = pack.rows[last - counts + 1] - before  # where its prompt begins
    own = pack.rows[last] - (counts - 1)  # one before its own first input token
    inside = torch.where(column <= before[:, None], start[:, None] + column, own[:, None] + column - before[:, None])
    table = ids[inside.clamp(max=len(ids) - 1)].masked_fill(column >= lengths[:, None], 0)
    row = torch.arange(len(counts), device=ids.device)[pack.row_response]
    return table, row * longest + positions[pack.rows]
